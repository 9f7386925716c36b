"""The errors that a person can do something about."""


class PluginError(Exception):
    """A command failed. The message says what is wrong, where, and what to do."""


class UsageError(PluginError):
    """The command line or the kubeconfig is wrong."""
