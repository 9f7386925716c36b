"""The operator: reconciles HyphaWorkers into controllers and HyphaJobs into pods."""
