"""Stage 3: downscale the evaluation days with a trained generator.

Reads   {data-folder}/PreEval.json (stage 1) and a checkpoint (stage 2), which holds every setting of the model
Writes  {out}/NN_pre_sr.nc, NN = position in the list, tp([member,] lat, lon) in mm

    python 3downscale_eval.py --members 8
"""

from datasets import checkpoint_config, file_rank, read_lr
from models import predictor
from utils import digest, downscale_args, downscale_list, find_checkpoint, load_checkpoint, log, run_stage

SPLIT, OUT = "eval", "Data/DataResults/ResultEval"


def main(argv=None):
    args = downscale_args(__doc__, OUT, argv)
    checkpoint = args.checkpoint or find_checkpoint(
        lambda state: file_rank(args.data_folder, SPLIT, state, args.region), SPLIT
    )
    state = load_checkpoint(checkpoint)
    config = checkpoint_config(state, args.region, args.units)
    fields = read_lr(args.data_folder, SPLIT, config, state)
    predict = predictor(state, device=args.device, members=args.members, seed=args.seed, tile=args.tile)
    log(
        f"{len(fields)} fields x{config.scale} with {checkpoint} (target {config.target}), {args.members} member(s), seed {args.seed}"
    )
    downscale_list(fields, predict, args, digest(checkpoint), config)


if __name__ == "__main__":
    run_stage(main)
