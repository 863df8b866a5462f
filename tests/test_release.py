"""What a stranger looks at before anything is run: one version, one licence, papers that are cited."""

import re
import tomllib

import yaml
from conftest import ROOT

import gramprune as gp


def test_the_version_and_the_licence_are_the_same_wherever_they_stand():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gramprune.__version__"}
    assert cited["version"] == gp.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1) == gp.__version__
    assert project["project"]["license"] == cited["license"] == "Apache-2.0"
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_the_papers_that_are_cited_are_those_of_the_readme():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    sources = (ROOT / "README.md").read_text().partition("## Sources")[2].replace("\n", " ")
    for paper in cited:
        assert paper["authors"] and paper["title"]
        assert paper["url"].rpartition("/")[2] in sources
