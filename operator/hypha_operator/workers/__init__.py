"""HyphaWorkers and the objects they own."""
