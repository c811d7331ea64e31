"""Sessions on diffusers pipelines. diffusers is imported inside functions only."""


def reopen(folder, pipe, memory_budget=None, state_folder=None, replay=None, cuda_graphs=False):
    """The session that was saved in a folder, for a pipeline of the same models: its edits are those of the one saved, bit for bit.

    memory_budget, state_folder, cuda_graphs: as for ``sige.Session``.   replay: as for ``sige.Session.load``. StorageError names the
    file that is missing, truncated or altered, or the model that is another one, or says that the folder holds no picture.
    """
    from sige.errors import StorageError
    from sige.session import Session

    session = Session.load(folder, pipe, memory_budget, state_folder, replay, cuda_graphs)
    if getattr(session, "trajectory", None) is None:
        raise StorageError(
            f"{folder} holds the recording of a model, no generated picture: open it with sige.Session.load"
        )
    return session
