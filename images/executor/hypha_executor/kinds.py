"""The kinds of exchanged tensors. A parameter server tells them by name and dtype, because it sees nothing else."""

from typing import Final, Literal

Kind = Literal["weights", "statistics", "integers"]
"""Weights take the outer step. The others are averaged, without momentum and learning rate."""

STATISTICS: Final = frozenset(
    {
        *("running_mean", "running_var"),  # batch and instance normalisation
        *("min_val", "max_val"),  # quantisation observers
        *("cluster_size", "cluster_usage", "embed_avg", "embed_sum"),  # codebooks that are moving averages
    }
)
"""The last parts of the names of tensors that only the forward pass changes."""

NEVER_NEGATIVE: Final = frozenset({"running_var", "cluster_size", "cluster_usage"})
"""Those of them that would make no sense below zero."""


def kind_of(name: str, dtype: str) -> Kind:
    """Return the kind of a tensor; `dtype` is that of its SafeTensors file."""
    if dtype[0] in "IU":
        return "integers"
    return "statistics" if name.rpartition(".")[2] in STATISTICS else "weights"
