"""Only the batch size is planned, in Lightning's Trainer: AdamW and its lr scheduler stay.

pip install 'batchramp[lightning]'; python examples/adamw_lightning.py
On two processes: python examples/adamw_lightning.py 2
"""

import sys

import lightning.pytorch as L
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from batchramp import Plan, ScheduledBatchSampler
from batchramp import schedules as s
from batchramp.data import fashion_mini
from batchramp.integrations.lightning import PlanCallback
from batchramp.models import MLP

PLAN = Plan(epochs=5, batch_size=s.Exponential(32, factor=2, every=1))  # 32, 64, ... 512


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = MLP()
        self.images = fashion_mini()
        self.train_set = TensorDataset(*self.images.train)

    def train_dataloader(self) -> DataLoader:
        # Here, and not before fit: the sampler must know the processes.
        return DataLoader(self.train_set, batch_sampler=ScheduledBatchSampler(PLAN, self.train_set))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], k: int) -> torch.Tensor:
        inputs, targets = batch
        # A mean over the samples: the callback weights it by this process's share of the batch.
        return cross_entropy(self.model(inputs), targets)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        # Not trainer.estimated_stepping_batches, which takes every epoch for as long as the first.
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=2e-3, total_steps=PLAN.total_steps(len(self.train_set))
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_start(self) -> None:
        if self.trainer.is_global_zero:
            print(f"processes: {self.trainer.world_size}")

    def on_train_epoch_end(self) -> None:
        self.model.eval()
        with torch.inference_mode():
            inputs, targets = (each.to(self.device) for each in self.images.validation)
            accuracy = (self.model(inputs).argmax(1) == targets).float().mean().item()
        self.model.train()
        if self.trainer.is_global_zero:
            print(
                f"epoch {self.current_epoch}: batch size {PLAN.at(self.current_epoch).batch_size}, "
                f"{self.global_step} steps so far, validation accuracy {100 * accuracy:.1f} %"
            )


if __name__ == "__main__":
    trainer = L.Trainer(
        max_epochs=PLAN.epochs,
        callbacks=[PlanCallback(PLAN)],
        devices=int(sys.argv[1]) if len(sys.argv) > 1 else 1,
        use_distributed_sampler=False,  # the sampler has dealt the batches already
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier())
