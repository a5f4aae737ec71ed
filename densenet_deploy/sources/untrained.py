"""Networks with random weights, by the name of a variant, or `none` for the variant that the constraint names."""

from __future__ import annotations

import dataclasses
from typing import Final

from densenet_deploy.errors import UsageError
from densenet_deploy.manifest import WeightsOrigin
from densenet_deploy.packages import require_packages
from densenet_deploy.sources.source import LoadedNetwork, Match, Source, WeightsConstraint, sources
from densenet_deploy.variants import DEFAULT_VARIANT, Variant, find_variant, is_variant, variant_names

UNTRAINED: Final = "none"


@sources.register("untrained")
class UntrainedSource(Source):
    """Build a variant; the same seed gives the same weights."""

    names = (UNTRAINED, *variant_names())

    def matches(self, source: object) -> Match:
        if not isinstance(source, str):
            return Match.NO
        return Match.CERTAIN if source == UNTRAINED or is_variant(source) else Match.NO

    def load(self, source: object, constraint: WeightsConstraint) -> LoadedNetwork:
        require_packages("export", "torch")
        from densenet_deploy.models.build import build_model
        from densenet_deploy.sources.weights import weights_of, weights_sha256

        variant = constraint.applied_to(_requested(str(source), constraint))
        module = build_model(variant.spec, seed=constraint.seed)
        weights = weights_of(module)
        return LoadedNetwork(
            variant.artifact_name,
            WeightsOrigin(UNTRAINED, weights_sha256(weights), constraint.seed),
            module,
            weights,
            variant=variant,
            output_names=(variant.spec.output_name,),
        )


def _requested(source: str, constraint: WeightsConstraint) -> Variant:
    if source == UNTRAINED:
        return constraint.variant or find_variant(DEFAULT_VARIANT)
    variant = find_variant(source)
    if constraint.variant is not None and constraint.variant.name != variant.name:
        why = f"is another variant than {constraint.variant.name}"
        raise UsageError(source, why, "name the variant once")
    return dataclasses.replace(variant, spec=(constraint.variant or variant).spec)
