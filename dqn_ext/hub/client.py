"""What goes wrong between here and the Hub, each in one sentence."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, ModelInfo, errors, get_session

from dqn_ext.errors import InvalidInput

TIMEOUT = 60.0  # seconds without a byte from the Hub; the client alone would wait forever

_REFUSALS = {
    401: "the Hub does not take this token; log in with `hf auth login`",
    403: "this token has no right to do that there",
    409: "the name is taken, or somebody else is pushing to it at this moment",
}


@contextmanager
def one_sentence(doing: str, after: str = "") -> Iterator[None]:
    """Turn the client's errors into one sentence each.

    :param doing: what fails, such as ``"Downloading me/agent"``
    :param after: what the user can do next
    :raises InvalidInput: instead of the client's errors
    """
    get_session().timeout = TIMEOUT
    try:
        yield
    except InvalidInput:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise InvalidInput(f"{doing} failed: {reason}.{after and ' ' + after}") from error


def repository_info(api: HfApi, repo_id: str) -> ModelInfo:
    """A repository's files with their sizes, its card's metadata, and its commit; within :func:`one_sentence`.

    :raises RuntimeError: where the client makes nothing of the card: it takes some names for arguments of its own
    """
    try:
        return api.model_info(repo_id, files_metadata=True)
    except (AttributeError, KeyError, TypeError) as error:
        raise RuntimeError(f"the metadata of its card cannot be read ({error})") from None


def _reason(error: BaseException) -> str | None:
    """Why the client failed; ``None`` where it is none of its errors."""
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # raised by its uploading threads
        return _reason(error.__cause__)
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "there is no token; log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "Repository Not Found, or it is private and this token may not see it"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "there is no connection to the Hub"
    if isinstance(error, errors.EntryNotFoundError):
        return "the repository lacks a file that it should have"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return _REFUSALS.get(status, f"the Hub answered with an error ({line})")
    if isinstance(error, errors.HFValidationError):
        return line
    # The client hands on what its HTTP library raises, and has changed that library before
    is_of_http = type(error).__module__.startswith(("http", "h11", "anyio", "requests", "urllib3"))
    if is_of_http or isinstance(error, (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError)):
        return f"there is no connection to the Hub ({line})"
    # A disk's, or of the Hub's own library for transfers
    return line if isinstance(error, (OSError, RuntimeError)) else None
