"""Format a plan as text and as JSON, for `--dry-run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusers_helper.vae.frames import FPS
from eichi_utils.problems import Translate
from eichi_utils.requests.append import whole_frames
from eichi_utils.requests.plan import Plan, Ref, Section
from eichi_utils.requests.request import Request


def plan_document(request: Request, needs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan as JSON, with the model that would carry it out. needs: what that takes, from `Engine.forecast`."""
    plan = request.plan()
    return {
        "needs": dict(needs),
        "model": request.model,
        "checkpoint": plan.checkpoint,
        "grows": plan.grows,
        "output": plan.output,
        "sections": [{"section": number, **_section_document(section)} for number, section in enumerate(plan.sections)],
        "opening": _ref_document(plan.opening),
        "closing": _ref_document(plan.closing),
        "pictures": dict(plan.pictures),
        "masks": dict(plan.masks),
        "vae_cache": plan.vae_cache,
        "latents": plan.latents,
        "frames": plan.frames,
        "seconds": round(plan.frames / FPS, 3),
        "append": _append_document(plan),
    }


def plan_lines(request: Request, needs: Mapping[str, Any], t: Translate) -> list[str]:
    """Return a line of totals, one of what the film needs, and one for each section in the order of sampling."""
    plan = request.plan()
    seconds = f"{plan.frames / FPS:.2f}"
    totals = {"sections": len(plan.sections), "frames": plan.frames, "seconds": seconds}
    lines = [t("cli.plan.total", model=request.model, size=request.size, steps=request.steps, **totals)]
    lines.append(t("cli.plan.needs_card" if needs["card"] else "cli.plan.needs", **needs))
    for number, section in enumerate(plan.sections):
        refs = " ".join(_ref_text(ref) for ref in (*section.clean, section.clean_2x, section.clean_4x) if ref)
        positions = f"{section.frames[0]}-{section.frames[-1]}"
        lines.append(t("cli.plan.section", number=number, positions=positions, refs=refs, prompt=section.prompt))
    if plan.append:
        whole = whole_frames(plan)
        lines.append(t("cli.plan.append", file=plan.append.file, frames=whole, seconds=f"{whole / FPS:.2f}"))
    return lines


def _append_document(plan: Plan) -> dict[str, Any] | None:
    """Return what is appended, with its bridge as a section and the frames of both films together; None if nothing is."""
    if plan.append is None:
        return None
    own = {field.name: getattr(plan.append, field.name) for field in dataclasses.fields(plan.append)}
    bridge = _section_document(plan.append.bridge) if plan.append.bridge else None
    return {**own, "bridge": bridge, "frames": whole_frames(plan)}


def _section_document(section: Section) -> dict[str, Any]:
    return {
        "frames": list(section.frames),
        "clean": [_ref_document(ref) for ref in section.clean],
        "clean_2x": _ref_document(section.clean_2x),
        "clean_4x": _ref_document(section.clean_4x),
        "prompt": section.prompt,
        "strength": section.strength,
        "lora_strengths": section.lora_strengths,
    }


def _ref_document(ref: Ref | None) -> dict[str, Any] | None:
    if ref is None:
        return None
    return {"source": ref.source, "at": list(ref.at), "skip": ref.skip, "scale": ref.scale, "mask": ref.mask}


def _ref_text(ref: Ref) -> str:
    at = f"{ref.at[0]}" if len(ref.at) == 1 else f"{ref.at[0]}-{ref.at[-1]}"
    return f"{ref.source}@{at}"
