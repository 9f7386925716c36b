"""Turn errors of the API server into messages that say what to do. Pure."""

from http import HTTPStatus

from hypha_contracts.kubernetes_errors import ApiError, Forbidden, NotFound
from hypha_contracts.names import GROUP
from hypha_kubectl.access.kubeconfig import Context
from hypha_kubectl.errors import PluginError


def explained(error: ApiError, context: Context) -> PluginError:
    """Return an error of the API server as people should see it."""
    where = f"context {context.name}"
    if error.status == 0:
        return PluginError(
            f"{where}: no answer from the API server {context.server} ({error.message}). Check that the cluster "
            "runs and can be reached from here, or use another --context."
        )
    if error.status == HTTPStatus.UNAUTHORIZED:
        return PluginError(
            f"{where}: the API server {context.server} does not accept your credentials. Log in to the cluster again."
        )
    if isinstance(error, Forbidden):
        return PluginError(
            f"{where}: {error.message}. Ask an administrator for this right: the roles view, edit and admin of a "
            "namespace include those for Hypha's resources. Or choose another --namespace."
        )
    if isinstance(error, NotFound) and _is_kind_missing(error):
        return PluginError(
            f"{where}: the cluster has no HyphaWorkers and HyphaJobs. Install the chart (docs/kubernetes.md), or use "
            "another --context. `kubectl hypha check --pre` says whether the cluster is ready for it."
        )
    return PluginError(f"{where}: {error}")


def _is_kind_missing(error: NotFound) -> bool:
    """Whether the API server does not serve our resources. Otherwise the message names the object that is missing."""
    return f"/apis/{GROUP}/" in str(error) and not error.message.startswith("hypha")
