"""Only the batch size is planned, with accelerate: AdamW and its lr scheduler stay.

pip install 'batchramp[accelerate]'; python examples/adamw_accelerate.py
On two processes: torchrun --nproc-per-node 2 examples/adamw_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from batchramp import Plan, ScheduledBatchSampler
from batchramp import schedules as s
from batchramp.data import fashion_mini
from batchramp.models import MLP

# First, for the sampler asks which process this is. Without a GPU accelerate must be told: it would
# start the processes and then take each for the only one.
accelerator = Accelerator(cpu=not torch.cuda.is_available())
accelerator.print(f"processes: {accelerator.num_processes}")
torch.manual_seed(0)
images = fashion_mini()
train = TensorDataset(*images.train)
model = MLP()

plan = Plan(epochs=5, batch_size=s.Exponential(32, factor=2, every=1))  # 32, 64, ... 512
loader = DataLoader(train, batch_sampler=ScheduledBatchSampler(plan, train))

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5)  # by epoch
# Neither the loader, whose batches are this process's share already and would be dealt once more,
# nor the scheduler, which would be stepped once for every process.
model, optimizer = accelerator.prepare(model, optimizer)

for epoch in range(5):
    loader.batch_sampler.set_epoch(epoch)
    model.train()
    for k, batch in enumerate(loader):
        inputs, targets = (each.to(accelerator.device) for each in batch)
        optimizer.zero_grad()
        loss = loader.batch_sampler.weight(k) * cross_entropy(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
    scheduler.step()
    model.eval()
    with torch.inference_mode():
        inputs, targets = (each.to(accelerator.device) for each in images.validation)
        found = accelerator.unwrap_model(model)(inputs).argmax(1)
        accuracy = (found == targets).float().mean().item()
    accelerator.print(
        f"epoch {epoch}: batch size {plan.at(epoch).batch_size}, {len(loader)} steps, "
        f"validation accuracy {100 * accuracy:.1f} %"
    )
