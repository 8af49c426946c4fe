"""Only the batch size is planned, in Hugging Face's Trainer: its AdamW and linear decay stay.

pip install 'batchramp[transformers]'; python examples/adamw_transformers.py
On two processes: torchrun --nproc-per-node 2 examples/adamw_transformers.py
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from batchramp import Plan
from batchramp import schedules as s
from batchramp.integrations.transformers import PlanTrainer

PLAN = Plan(epochs=4, batch_size=s.Exponential(16, factor=2, every=1))  # 16, 32, 64, 128


def counting(n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Rows that count on from somewhere, in steps of 1 to 4, modulo 32."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(32, (n, 1), generator=generator)
    step = torch.randint(1, 5, (n, 1), generator=generator)
    rows = (start + step * torch.arange(12)) % 32
    return [{"input_ids": row, "labels": row} for row in rows]


if __name__ == "__main__":
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=16,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = PlanTrainer(
            model,
            TrainingArguments(
                folder, learning_rate=3e-3, eval_strategy="epoch", logging_strategy="epoch",
                save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
            ),
            plan=PLAN,
            train_dataset=counting(2000, seed=0),
            eval_dataset=counting(200, seed=1),
        )  # fmt: skip
        trainer.train()
    if trainer.is_world_process_zero():
        print(f"processes: {trainer.args.world_size}")
        steps = [round(row["step"]) for row in trainer.state.log_history if "eval_loss" in row]
        losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
        for epoch, (step, loss) in enumerate(zip(steps, losses, strict=True)):
            size = PLAN.at(epoch).batch_size
            print(f"epoch {epoch}: batch size {size}, {step} steps so far, eval loss {loss:.3f}")
