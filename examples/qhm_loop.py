"""Batch size, lr, beta and gamma planned together, in a plain PyTorch loop.

python examples/qhm_loop.py
"""

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from batchramp import QHM, ParamScheduler, Plan, ScheduledBatchSampler, full_gradient_norm
from batchramp import schedules as s
from batchramp.data import fashion_mini
from batchramp.models import MLP

torch.manual_seed(0)
images = fashion_mini()
train = TensorDataset(*images.train)
model = MLP()

# QHM's lr is not SGD's: QHM(lr=0.1, beta=0.9, gamma=1) takes the steps of SGD(lr=0.01,
# momentum=0.9). QHM.from_sgd converts.
plan = Plan(
    epochs=8,
    batch_size=s.Exponential(16, factor=2, every=2),
    lr=s.Cosine(0.2),
    beta=s.StepDecay(0.9, factor=0.5, every=2),
    gamma=s.StepDecay(0.7, factor=0.5, every=2),
)
print(plan.describe(len(train)))

optimizer = QHM(model.parameters(), **plan.at(0).hyperparameters)
sampler = ScheduledBatchSampler(plan, train, seed=0)
loader = DataLoader(train, batch_sampler=sampler)
scheduler = ParamScheduler(optimizer, plan, sampler=sampler)  # one step() moves both

for epoch in range(8):
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    norm, loss = full_gradient_norm(model, cross_entropy, [images.train])
    print(f"epoch {epoch}: batch size {plan.at(epoch).batch_size}, ", end="")
    print(f"train loss {loss:.4f}, full-gradient norm {norm:.4f}")
    scheduler.step()
