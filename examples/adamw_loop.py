"""Only the batch size is planned: AdamW and its lr scheduler stay as they were.

python examples/adamw_loop.py
"""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from batchramp import Plan, ScheduledBatchSampler
from batchramp import schedules as s
from batchramp.data import fashion_mini
from batchramp.models import MLP

torch.manual_seed(0)
images = fashion_mini()
train = TensorDataset(*images.train)
model = MLP()

plan = Plan(epochs=5, batch_size=s.Exponential(32, factor=2, every=1))  # 32, 64, ... 512
sampler = ScheduledBatchSampler(plan, train, seed=0)
loader = DataLoader(train, batch_sampler=sampler)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
# Steps per epoch change with the batch size, so a scheduler by step needs the Plan's own count.
scheduler = torch.optim.lr_scheduler.OneCycleLR(
    optimizer, max_lr=2e-3, total_steps=plan.total_steps(len(train))
)

for epoch in range(5):
    sampler.set_epoch(epoch)
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    with torch.inference_mode():
        inputs, targets = images.validation
        accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    print(f"epoch {epoch}: batch size {plan.at(epoch).batch_size}, {len(loader)} steps, ", end="")
    print(f"validation accuracy {100 * accuracy:.1f} %")
