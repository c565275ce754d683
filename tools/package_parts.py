"""What a package is made of: each part's version, licence and texts, for people as a
copyright file and for programs as a bill of materials (CycloneDX).

All of it comes from the wheels themselves; one that does not say its licence, or does
not bring its text, is an error, for then nobody may pass the package on.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from attrs import field, frozen
from packaging.licenses import (
    InvalidLicenseExpression,
    canonicalize_license_expression,
)
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.package_lock import digest

_UNOFFICIAL = {"Apache 2.0": "Apache-2.0", "MIT License": "MIT"}
"""What some write instead of the licence's SPDX identifier."""

_TEXTS = ("licen", "copying", "notice", "authors")

_NOT_SAID = {"cffi": ("libffi", "MIT")}
"""Linked into a part whose wheels do not say so; packaging/licences has the text."""


class PartError(Exception):
    """A part that must not be passed on as it is; one line."""


@frozen
class Part:
    """One project that is in the package."""

    name: str
    version: str
    licence: str  # an SPDX expression
    homepage: str
    needs: frozenset[str]  # names of other projects
    texts: Mapping[str, str] = field(repr=False)  # of licences, by file
    hashes: Sequence[str] = ()  # of its wheels
    inside: Sequence[Mapping[str, Any]] = ()  # components it says are in it

    @property
    def reference(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def parts(wheels: Iterable[Path], licences: Path) -> list[Part]:
    """Return the parts that wheels bring, in the order of their names.

    Args:
      wheels: several may be of the same project.
      licences: folder with the texts that wheels lack.
    """
    files: dict[str, list[Path]] = {}
    for wheel in wheels:
        files.setdefault(canonicalize_name(wheel.name.split("-")[0]), []).append(wheel)
    return [_part(name, files[name], licences) for name in sorted(files)]


def _part(name: str, wheels: Sequence[Path], licences: Path) -> Part:
    texts: dict[str, str] = {}
    inside: list[Mapping[str, Any]] = []
    with zipfile.ZipFile(wheels[0]) as archive:
        for path in sorted(archive.namelist()):
            folder, _, file = path.partition(".dist-info/")
            if not file or "/" in folder:
                continue
            if file == "METADATA":
                metadata = _parsed(archive.read(path))
            elif file.startswith("sboms/") and file.endswith(".json"):
                inside += json.loads(archive.read(path))["components"]
            elif Path(file).name.lower().startswith(_TEXTS):
                texts[Path(file).name] = archive.read(path).decode()
    if name in _NOT_SAID:
        also, licence = _NOT_SAID[name]
        inside.append(component(also, licence, type="library"))
        texts[also] = (licences / f"{also}.txt").read_text()
    if not texts:
        raise PartError(f"{wheels[0].name} brings no text of its licence")
    return Part(
        name=name,
        version=metadata["Version"],
        licence=_licence(metadata),
        homepage=_homepage(metadata),
        needs=_needs(metadata),
        texts=texts,
        hashes=sorted(map(digest, wheels)),
        inside=inside,
    )


def _parsed(data: bytes) -> EmailMessage:
    parser = email.parser.BytesParser(policy=email.policy.default.clone(utf8=True))
    message = parser.parsebytes(data)
    assert isinstance(message, EmailMessage)
    return message


def _licence(metadata: EmailMessage) -> str:
    classifiers = metadata.get_all("Classifier", ())
    said = [
        metadata["License-Expression"],
        metadata["License"],
        *(text.rpartition(" :: ")[2] for text in classifiers if "License ::" in text),
    ]
    for text in filter(None, said):
        try:
            return canonicalize_license_expression(_UNOFFICIAL.get(text, text))
        except InvalidLicenseExpression:
            continue
    raise PartError(f"{metadata['Name']} does not say its licence")


def _homepage(metadata: EmailMessage) -> str:
    links: list[str] = metadata.get_all("Project-URL", [])
    pairs = [link.partition(",")[::2] for link in links]
    known = {label.strip().lower(): link.strip() for label, link in pairs}
    labels = ("source", "source code", "repository", "github", "homepage")
    found = [known[label] for label in labels if label in known]
    return [*found, *map(str, metadata.get_all("Home-page", [])), *known.values(), ""][
        0
    ]


def _needs(metadata: EmailMessage) -> frozenset[str]:
    asked = map(Requirement, metadata.get_all("Requires-Dist", ()))
    return frozenset(
        canonicalize_name(each.name)
        for each in asked
        if each.marker is None or each.marker.evaluate({"extra": ""})
    )


# For people


def copyright_file(own: Part, others: Iterable[Part]) -> str:
    """Return what each part may be used for, with every licence in full."""
    blocks = [_described(own), "It contains the following parts."]
    return "\n\n\n".join([*blocks, *map(_described, others)]) + "\n"


def _described(part: Part) -> str:
    title = f"{part.name} {part.version}"
    lines = [title, "=" * len(title), f"Licence: {part.licence}"]
    if part.homepage:
        lines.append(f"Source: {part.homepage}")
    if part.inside:
        names = ", ".join(sorted(each["name"] for each in part.inside))
        lines.append(f"With, according to the bill of materials: {names}")
    texts = [f"-- {name} --\n\n{text.strip()}" for name, text in part.texts.items()]
    return "\n\n".join(["\n".join(lines), *texts])


# For programs


def bill(own: Part, others: Sequence[Part], epoch: int) -> str:
    """Return the bill of materials: CycloneDX 1.6 as JSON.

    The same parts at the same time are the same text, its serial number included.
    """
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": f"{datetime.fromtimestamp(epoch, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "component": _of_part(own, "application"),
        },
        "components": [_of_part(part, "library") for part in others],
        "dependencies": _dependencies([own, *others]),
    }
    text = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, text)}"
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _of_part(part: Part, kind: str) -> dict[str, Any]:
    described = component(part.name, part.licence, type=kind, version=part.version)
    described |= {"bom-ref": part.reference, "purl": part.reference}
    if part.homepage:
        described["externalReferences"] = [{"type": "website", "url": part.homepage}]
    # Several wheels, one for each Python: a component has one hash of each kind, so
    # those of files are properties.
    described["properties"] = [
        {"name": "alpha-trio:wheel:sha256", "value": each} for each in part.hashes
    ]
    if part.inside:
        prefix = part.reference
        described["components"] = [_within(prefix, each) for each in part.inside]
    return described


def component(name: str, licence: str, **more: str) -> dict[str, Any]:
    """Return what a bill of materials says of something that is in a part."""
    # An expression stands alone; a single identifier is an expression as well.
    return {"name": name, "licenses": [{"expression": licence}], **more}


def _within(prefix: str, component: Mapping[str, Any]) -> dict[str, Any]:
    """A component of another bill, with a reference that is unique in this one."""
    reference = component.get("bom-ref") or component["name"]
    return {**component, "bom-ref": f"{prefix}#{reference}"}


def _dependencies(parts: Iterable[Part]) -> list[dict[str, Any]]:
    known = {part.name: part for part in parts}
    return [
        {
            "ref": part.reference,
            "dependsOn": sorted(known[n].reference for n in part.needs if n in known),
        }
        for part in known.values()
    ]
