"""The parameter server: averages pseudo-gradients and takes the outer optimiser's step, in a fixed amount of memory."""
