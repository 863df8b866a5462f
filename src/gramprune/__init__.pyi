# What type checkers see of the package, whose names are imported when they are used.
from gramprune.errors import GrampruneError as GrampruneError
from gramprune.pruning.gram import Gram as Gram
from gramprune.pruning.gram import layer_error as layer_error
from gramprune.pruning.joint import prune_weight as prune_weight
from gramprune.pruning.masks import select_mask as select_mask
from gramprune.pruning.refine import refine_mask as refine_mask
from gramprune.pruning.sparsity import Pattern as Pattern
from gramprune.pruning.target import retarget_weight as retarget_weight
from gramprune.pruning.updates import update_weight as update_weight

__version__: str
__all__: list[str]
