import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bilevel import BilevelProblem, PBGDFree

dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)
inputs = torch.randn(256, 5)
targets = inputs.sin().sum(1, keepdim=True)
backbone = DistributedDataParallel(nn.Sequential(nn.Linear(5, 16), nn.Tanh()))
head = DistributedDataParallel(nn.Linear(16, 1))


def loss(x, y, batch):
    features, answer = batch
    return mse_loss(head(backbone(features)), answer)


def loader(rows):
    data = TensorDataset(inputs[rows], targets[rows])
    return DataLoader(data, batch_size=32, sampler=DistributedSampler(data))


solution = PBGDFree(penalty=10.0, upper_lr=0.1, lower_lr=0.1).solve(
    BilevelProblem(upper=loss, lower=loss),
    dict(backbone.named_parameters()),
    dict(head.named_parameters()),
    upper_batches=loader(slice(0, 128)),
    lower_batches=loader(slice(128, 256)),
    max_steps=200,
    tolerance=0.0,
)
sums = [None] * dist.get_world_size()
own = sum(value.sum().item() for value in solution.x.values())
dist.all_gather_object(sums, own)
if dist.get_rank() == 0:
    print(f"{solution.steps} steps on {len(sums)} processes")
    print("the processes hold the same x:", len(set(sums)) == 1)
dist.destroy_process_group()
