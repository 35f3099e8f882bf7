"""The training loop of one stage, short enough to edit: plain functions and a few seams.

each step:     train_step (step.py) -> average the weights
now and then:  log, evaluate, save
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator

from mmprod.checkpoint import layout
from mmprod.errors import MmprodError
from mmprod.training.checkpointing import load_checkpoint
from mmprod.training.distributed import add_over_ranks, only_main
from mmprod.training.ema import Ema
from mmprod.training.evaluating import evaluate_or_give_up, evaluate_weights, whole, write_weights
from mmprod.training.events import Event, Kind, StageResult
from mmprod.training.footprint import footprint, log_footprint
from mmprod.training.loading import Loader
from mmprod.training.metrics import MetricsLog
from mmprod.training.numerics import BadBatch, bad_batch, bad_evaluation
from mmprod.training.progress import Progress
from mmprod.training.saving import Saver
from mmprod.training.shares import Shares
from mmprod.training.snapshot import Trained
from mmprod.training.step import COUNTS, train_step
from mmprod.training.step import StageJob as StageJob
from mmprod.training.stopping import stopped
from mmprod.training.telemetry import DATA_SECONDS, STEP_SECONDS, Telemetry
from mmprod.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def train_stage(job: StageJob) -> StageResult:
    """Train to the end (or to `patience`); the best averaged weights are then in model.safetensors.

    Raises NumericsError at NaN or infinity, Preempted when a signal asked to stop (state is saved).
    """
    return _Loop(job).run()


class _Loop:
    def __init__(self, job: StageJob) -> None:
        self.job, self.cfg = job, job.cfg
        self.ema = Ema(job.backend.weights(), job.cfg.ema)
        self.trained = Trained(job.backend, self.ema, job.world, job.task, job.eval_model)
        cfg, world = job.cfg, job.world
        self.shares = Shares(cfg.seed, cfg.batch, world.rank, world.size, job.backend.accumulation)
        self.progress = Progress()
        self.saving = 0
        self.watchdog = Watchdog(world, job.folder, cfg.hang_s)

    def run(self) -> StageResult:
        job = self.job
        with self.watchdog:
            if job.start is not None:
                self.progress = load_checkpoint(self.trained, job.start)
            progress = self.progress
            if progress.best is not None and not only_main(job.world, self._has_weights):
                logger.warning("%s: the best weights are lost, new ones are looked for", job.folder)
                progress.forget_best()
            log_footprint(job.task.name, footprint(job.backend, self.ema.average, job.task))
            start = job.start.path if job.start is not None else None
            self.saver = Saver(self.trained, job.folder, job.identity, self.cfg, start)
            self._tell("stage", {})
            self.telemetry = Telemetry(job.monitoring, job.world, self.cfg, progress.step)
            loader = Loader(job.task, self.shares, progress.step, self.cfg.steps)
            log = MetricsLog(
                job.folder,
                from_step=progress.step,
                enabled=job.world.is_main,
                monitoring=job.monitoring,
                evaluated=progress.evaluated,
            )
            alone = self._rescuing() if job.world.size == 1 else contextlib.nullcontext()
            with loader, log, alone:
                if self._evaluation_is_due():
                    self._conclude(log, [0.0, 0.0])
                phase = "first step"
                while not self._is_done():
                    with self._phase(phase):
                        asked = self._step(loader, log)
                    self._conclude(log, asked)
                    phase = "step"
        return StageResult(job.task.name, progress.step, progress.best_step, progress.best_metrics)

    def _step(self, loader: Loader, log: MetricsLog) -> list[float]:
        job, progress = self.job, self.progress
        started = time.perf_counter()
        try:
            outcome = train_step(job, loader, progress, written=self.saver.ready)
        except BadBatch as bad:  # on all ranks
            self._rescue()
            good = self.saver.last_good
            raise bad_batch(job.world, job.task, job.folder, bad, good) from None
        progress.step += 1
        if outcome.updated:
            self.ema.update(job.backend.weights(), progress.step)
        spent = time.perf_counter() - started
        progress.seconds += spent
        times = {STEP_SECONDS: spent, DATA_SECONDS: loader.waited()}
        progress.meter.add(outcome.figures | times)
        if progress.step % self.cfg.log_every == 0 or progress.step == self.cfg.steps:
            self._log(log)
        if outcome.written:
            self._finish_saving()
        return outcome.asked

    def _conclude(self, log: MetricsLog, asked: list[float]) -> None:
        """After a step: evaluate, save, and stop if some rank was asked to."""
        progress, improved = self.progress, False
        if self._evaluation_is_due() and not any(asked):
            improved, asked = self._evaluate(log)
        stop = any(asked) and not self._is_done()
        if progress.step % self.cfg.save_every == 0 or improved or self._is_done() or stop:
            self._save()
        if stop or self._is_done():
            self._finish_saving()
        if stop:
            raise stopped(f"{self.job.task.name} is saved at step {progress.step}", asked)

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        at = step > 0 and (step % self.cfg.eval_every == 0 or step >= self.cfg.steps)
        return at and self.progress.evaluated < step

    def _is_done(self) -> bool:
        ended = self.progress.step >= self.cfg.steps and not self._evaluation_is_due()
        return ended or 0 < self.cfg.patience <= self.progress.stale

    def _log(self, log: MetricsLog) -> None:
        progress = self.progress
        steps, means = progress.meter.count, progress.meter.take()
        for name in set(COUNTS) & set(means):
            means[name] *= steps
        figures = self.telemetry.figures(means, progress.step) | {"seconds": progress.seconds}
        log.write("log", progress.step, figures)
        self._tell("log", figures)

    def _evaluate(self, log: MetricsLog) -> tuple[bool, list[float]]:
        """Evaluate the averaged weights on rank 0; keep them when they are the best so far.

        Returns whether they are, and the flags of a request to stop that came meanwhile. Raises
        NumericsError when a figure is not finite.
        """
        job, progress = self.job, self.progress
        with self._phase("evaluation"):
            weights = job.backend.gather(self.ema.average)
            path = layout.sample_path(job.folder, progress.step)
            with self._rescuing():
                metrics = evaluate_or_give_up(
                    job.world,
                    job.stop,
                    lambda: evaluate_weights(job.task, job.eval_model, weights, path),
                )
            if metrics is None:
                return False, add_over_ranks(job.world, job.stop.flags)
            broken = [name for name, figure in metrics.items() if not math.isfinite(figure)]
            if broken:
                self._rescue()
                good = self.saver.last_good
                raise bad_evaluation(job.task.name, progress.step, broken, good)
            value = job.task.better(metrics, progress.step)
            improved = progress.best is None or value > progress.best
            if improved:
                progress.best, progress.best_metrics = value, metrics
                progress.best_step, progress.stale = progress.step, 0
                with self._rescuing():
                    only_main(job.world, self._write_weights)
            else:
                progress.stale += 1
            progress.evaluated = progress.step
        log.write("eval", progress.step, {**metrics, "seconds": progress.seconds})
        log.picture(progress.step, path)
        self._tell("eval", metrics)
        return improved, [0.0, 0.0]

    def _has_weights(self) -> bool:
        return (self.job.folder / layout.WEIGHTS).is_file()

    def _write_weights(self) -> None:
        task = self.job.task
        path = self.job.folder / layout.WEIGHTS
        write_weights(path, task.core(whole(self.job.eval_model)), task.codebook)

    def _save(self) -> None:
        self._finish_saving()
        self.watchdog.beat("save", self.progress.step)
        if self.job.chaos is not None:
            self.job.chaos.enter("save", self.progress.step)
        self.saving = self.progress.step
        self.saver.save(self.progress)
        if not self.saver.pending:
            self._saved()

    def _finish_saving(self) -> None:
        """Make what a thread writes the newest checkpoint."""
        if self.saver.pending:
            self.watchdog.beat("save", self.progress.step)
            self.saver.finish()
            self._saved()

    @contextlib.contextmanager
    def _rescuing(self) -> Iterator[None]:
        """What fails on all ranks alike within does not cost the save that is pending."""
        try:
            yield
        except (MmprodError, OSError):
            self._rescue()
            raise

    def _rescue(self) -> None:
        """`_finish_saving` on the way out: its own failure is told, and hides no other."""
        try:
            self._finish_saving()
        except (MmprodError, OSError) as error:
            logger.error("the pending checkpoint was lost: %s", error)

    def _saved(self) -> None:
        if self.job.chaos is not None:
            self.job.chaos.leave("save")
        self.watchdog.saved = True
        self._tell("save", {}, self.saving)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """What the watchdog and a chaos run go by."""
        self.watchdog.beat(name, self.progress.step)
        if self.job.chaos is not None:
            self.job.chaos.enter(name, self.progress.step)
        yield
        if self.job.chaos is not None:
            self.job.chaos.leave(name)

    def _tell(self, kind: Kind, metrics: dict[str, float], step: int | None = None) -> None:
        if self.job.on_event is not None and self.job.world.is_main:
            after = self.progress.step if step is None else step
            self.job.on_event(Event(self.job.task.name, after, self.cfg.steps, metrics, kind))
