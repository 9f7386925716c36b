"""HyphaJobs and the objects they own."""
