"""The parameter server, an executor: it averages pseudo-gradients and takes the outer step, in constant memory."""
