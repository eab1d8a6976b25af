"""elastix, the classical toolbox, as a method like any other: a B-spline or an affine map."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dio_lightning.implicit import Solution
from dio_lightning.layers import Run
from dio_lightning.modules.base import RegistrationModule
from dio_lightning.modules.refinement import Refinement
from dio_lightning.pair import Pair

METRICS = {"ncc": "AdvancedNormalizedCorrelation", "mi": "AdvancedMattesMutualInformation"}


class Elastix(RegistrationModule):
    """Adaptive stochastic gradient descent over an image pyramid (Klein et al., IEEE TMI 29, 2010; IJCV 81, 2009).

    elastix' own default parameters, but for what is named here. It is given voxels of size 1: the grid of control
    points and the length of a step are isotropic in voxels, hence not in millimetres where the pair's spacing is
    anisotropic. Runs on the CPU; one seed gives one result on one machine and number of threads. It reports no
    residual (NaN) and has no stop rule (never converged). A pair that elastix gives up on keeps u = 0 and is failed.

    Args:
        transform: `bspline`, cubic, or `affine`; both start at the identity.
        levels: levels of the pyramid, each twice as fine as the one before; the last has the image's resolution.
        grid_spacing: distance of the control points at the last level, in voxels of the working grid; doubled at each
            coarser level.
        iterations: at every level.
        samples: random points of the fixed image that estimate a gradient, drawn anew in every iteration.
        metric: `ncc`, normalised correlation of the whole image, or `mi`, Mattes' mutual information.
        bending: weight of the bending energy of a B-spline beside the metric, 1 in elastix' defaults; without it
            the B-spline aligns outlines at the price of what is inside. With it an iteration takes three times as long.
        seed: of the samples.
        threads: of elastix.
        resolution: see `RegistrationModule`.
        refine: see `RegistrationModule`.

    Raises:
        ValueError: for a number out of range, or if the package itk-elastix is not installed.
    """

    def __init__(
        self,
        transform: Literal["bspline", "affine"] = "bspline",
        levels: int = 3,
        grid_spacing: float = 4.0,
        iterations: int = 500,
        samples: int = 4096,
        metric: Literal["ncc", "mi"] = "ncc",
        bending: float = 1.0,
        seed: int = 0,
        threads: int = 1,
        resolution: float = 1.0,
        refine: Refinement | None = None,
    ) -> None:
        super().__init__(resolution=resolution, refine=refine)
        numbers = {"levels": levels, "iterations": iterations, "samples": samples, "threads": threads}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if grid_spacing <= 0 or bending < 0 or seed < 0:
            raise ValueError(
                f"grid_spacing is {grid_spacing}, bending {bending}, seed {seed}, expected a spacing above 0 and the "
                "others at least 0"
            )
        if transform not in ("bspline", "affine") or metric not in METRICS:
            raise ValueError(f"no transform={transform!r} with metric={metric!r}: expected bspline|affine, ncc|mi")
        toolbox()
        self.transform, self.levels, self.grid_spacing = transform, levels, grid_spacing
        self.iterations, self.samples, self.metric, self.bending = iterations, samples, metric, bending
        self.seed, self.threads = seed, threads
        self._last = iterations

    @property
    def title(self) -> str:
        """Elastix and its transform."""
        return f"elastix ({'B-spline' if self.transform == 'bspline' else 'affine'})"

    @property
    def steps(self) -> int:
        """Iterations at the last level."""
        return self._last

    @steps.setter
    def steps(self, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"steps is {steps}, expected at least 1")
        self._last = steps

    def setup(self, stage: str) -> None:
        """Loads ITK, whose many libraries take seconds, before the first pair is timed."""
        _ = toolbox().ElastixRegistrationMethod

    def align(self, work: Pair, pair: Pair, run: Run = Run()) -> list[Solution]:
        """One solution, the displacement after the last level."""
        self.expect_no_steps(run)
        fixed, moving = work["fixed"], work["moving"]
        if fixed.shape[1] != 1 or moving.shape[1] != 1:
            raise ValueError(f"images have {fixed.shape[1]} and {moving.shape[1]} channels, elastix takes one")
        pairs = zip(_arrays(fixed), _arrays(moving), strict=True)
        value = torch.stack([self._displacement(f, m) for f, m in pairs]).to(fixed)
        failed = ~value.flatten(1).isfinite().all(1)
        steps = (self.levels - 1) * self.iterations + self._last
        return [
            Solution(
                value=value.nan_to_num(),
                residual=fixed.new_full((len(fixed),), float("nan")),
                steps=torch.full((len(fixed),), steps, device=fixed.device),
                converged=torch.zeros_like(failed),
                failed=failed,
            )
        ]

    def _displacement(self, fixed: NDArray[np.float32], moving: NDArray[np.float32]) -> Tensor:
        """The displacement (d, *s) of one pair (*s); NaN where elastix gave up."""
        itk, d = toolbox(), fixed.ndim
        target, source = itk.image_view_from_array(fixed), itk.image_view_from_array(moving)
        method = itk.ElastixRegistrationMethod[type(target), type(source)].New(target, source)
        method.SetParameterObject(self._settings(itk, d))
        method.SetNumberOfThreads(self.threads)
        method.SetLogToConsole(False)
        try:
            method.UpdateLargestPossibleRegion()
        except RuntimeError:
            warnings.warn("elastix found no registration of a pair: its displacement is zero", stacklevel=2)
            return torch.full((d, *fixed.shape), torch.nan)
        # transformix would write the field into the current folder
        sampler = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, d], d], itk.D].New()
        sampler.SetTransform(method.GetCombinationTransform())
        sampler.SetReferenceImage(target)
        sampler.UseReferenceImageOn()
        sampler.SetNumberOfWorkUnits(self.threads)
        sampler.Update()
        # ITK names the axes in reverse of the array: component 0 lies along the last axis
        return torch.from_numpy(itk.array_from_image(sampler.GetOutput())).movedim(-1, 0).flip(0)

    def _settings(self, itk: Any, dimensions: int) -> Any:  # noqa: ANN401
        """The parameters of elastix: the defaults of its `bspline` or `affine`, and ours."""
        defaults = dict(itk.ParameterObject.GetDefaultParameterMap(self.transform, self.levels, self.grid_spacing))
        halvings = [2**level for level in reversed(range(self.levels))]
        ours: dict[str, list[Any]] = {
            "Registration": ["MultiResolutionRegistration"],
            "Metric": [METRICS[self.metric]],
            "ImagePyramidSchedule": [h for h in halvings for _ in range(dimensions)],
            "MaximumNumberOfIterations": [self.iterations] * (self.levels - 1) + [self._last],
            "NumberOfSpatialSamples": [self.samples],
            "RandomSeed": [self.seed],
            "AutomaticTransformInitialization": ["false"],
            "WriteResultImage": ["false"],
        }
        if self.transform == "bspline":
            ours |= {"FinalGridSpacingInPhysicalUnits": [self.grid_spacing], "GridSpacingSchedule": halvings}
            if self.bending:
                ours["Registration"] = ["MultiMetricMultiResolutionRegistration"]
                ours["Metric"].append("TransformBendingEnergyPenalty")
                ours |= {"Metric0Weight": [1.0], "Metric1Weight": [self.bending]}
        parameters = itk.ParameterObject.New()
        parameters.AddParameterMap(defaults | {key: [str(v) for v in values] for key, values in ours.items()})
        return parameters


def toolbox() -> Any:  # noqa: ANN401
    """ITK with elastix; imported late, for it is an extra and slow to load.

    Raises:
        ValueError: if the package itk-elastix is not installed.
    """
    try:
        itk = import_module("itk")
    except ModuleNotFoundError:
        itk = None
    # ITK may be there without elastix; asking for the file does not load it
    if itk is None or find_spec("itk.ElastixPython") is None:
        raise ValueError('elastix needs the package itk-elastix: pip install "dio-lightning[elastix]"')
    return itk


def _arrays(images: Tensor) -> list[NDArray[np.float32]]:
    return [np.ascontiguousarray(image[0]) for image in images.detach().float().cpu().numpy()]
