"""What may vary (SearchSpace, from YAML), and one choice from it (Architecture)."""

from nas.space.architecture import Architecture, BlockChoice, StageChoice, architecture_of
from nas.space.search_space import SearchSpace

__all__ = ["Architecture", "BlockChoice", "SearchSpace", "StageChoice", "architecture_of"]
