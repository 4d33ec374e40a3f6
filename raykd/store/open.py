"""Opens the store that a labelling can use, or makes a new one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from raykd.errors import StoreError
from raykd.recipe.generation import Payload
from raykd.run.files import fingerprint
from raykd.store import format_1, payloads
from raykd.store.schema import FORMAT
from raykd.store.store import Store, checked_format, payload_of

_MISSING = object()


def open_store(folder: str | Path, parts: dict[str, Any], payload: Payload, path: str | Path | None = None) -> Store:
    """The store at `path`, else the one below `folder` with these parts; a new store if there is none.

    `parts` is all that decides a pseudo-target, as JSON values. Rows that are written into the store must have the
    store's own `payload`, which may be richer than the requested one. A store of format 1 at `path` is migrated. Raises
    StoreError if the store at `path` was written with other parts or a poorer payload.
    """
    parts = json.loads(json.dumps(parts))
    store = Store(path, payload) if path else _find(folder, parts, payload)
    about = store.read_json("store.json")
    if about is None:
        store.write_about(parts, payload)
        return store
    old = about.get("format") == 1
    wrong = _differences(_about_now(store, about), parts, payload)
    if wrong:
        raise StoreError(f"{store.path}: written with another {'; another '.join(wrong)}")
    if old:
        format_1.migrate(store, about)
    return store


def require_parts(path: str | Path, parts: dict[str, Any]) -> None:
    """Raise StoreError if the store at `path`, where there is one, was written with other values of these parts."""
    store = Store(path)
    about = store.read_json("store.json")
    if about is None:
        return
    old_parts = _about_now(store, about)["parts"]
    wrong = _different("", {name: old_parts.get(name) for name in parts}, json.loads(json.dumps(parts)))
    if wrong:
        raise StoreError(f"{store.path}: written with another {'; another '.join(wrong)}")


def _about_now(store: Store, about: dict[str, Any]) -> dict[str, Any]:
    """A store's store.json as this format has it. Raises StoreError for a format that is not known."""
    return format_1.about_as_format_2(about) if about.get("format") == 1 else checked_format(store.path, about)


def store_name(parts: dict[str, Any], payload: Payload) -> str:
    """The folder's name for a new store: a hash of format, parts and payload."""
    return fingerprint({"format": FORMAT, **parts, "payload": payload.model_dump(mode="json")})


def _find(folder: str | Path, parts: dict[str, Any], payload: Payload) -> Store:
    """The store below `folder` with this payload, else any with a richer one, else the one that is to be made."""
    exact = Store(f"{folder}/{store_name(parts, payload)}", payload)
    if exact.read_json("store.json") is not None:
        return exact
    fs, root = url_to_fs(str(folder))
    fs.invalidate_cache()
    for path in sorted(fs.ls(root, detail=False)) if fs.exists(root) else []:
        store = Store(f"{folder}/{path.rstrip('/').rsplit('/', 1)[-1]}", payload)
        about = store.read_json("store.json") if fs.isdir(path) else None
        if about and about.get("format") == FORMAT and not _differences(about, parts, payload):
            return store
    return exact


def _differences(about: dict[str, Any], parts: dict[str, Any], payload: Payload) -> list[str]:
    """The reasons why a store cannot be used, each as `name: its value, expected ...`; empty if it can."""
    lines = _different("", about["parts"], parts)
    if not payloads.serves(payload_of(about), payload):
        lines += [f"payload: {about['payload']}, expected {payload.model_dump(mode='json')} or richer"]
    return lines


def _different(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(key for key in new if key not in old)]
        fields = ((f"{name}.{key}" if name else key, old.get(key, _MISSING), new.get(key, _MISSING)) for key in names)
        return [line for field in fields for line in _different(*field)]
    old_text, new_text = ("nothing" if value is _MISSING else repr(value) for value in (old, new))
    return [] if old == new else [f"{name}: {old_text}, expected {new_text}"]
