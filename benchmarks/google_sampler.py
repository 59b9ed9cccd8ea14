"""A loop of Google's `gm.text.Sampler` over batches of prompts. Needs gemma 3.3; benchmarks/serve.py runs it.

    GEMMA_ENVIRONMENT/bin/python benchmarks/google_sampler.py < REQUEST

The first line of REQUEST is JSON: config, dtype, checkpoint (null: random weights), context and new tokens. Each
further one is a level: its batch size, prompts as token ids, and fewer new tokens if it is to have those. Prints a line
of JSON for each: the batch that fits into memory (halved until it does), tokens and seconds. Every shape is compiled
before it is timed.

kauldron, which gemma imports for names of types and for shardings, takes tensorflow and an older jax; where it is not
installed, a stand-in has those names, so that the sampler runs with the jax that there is.
"""

# pyright: reportMissingImports=false

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

BUCKETS = (256, 512, 1024, 2048, 4096, 8192)  # lengths that prompts are padded to; the first three are the sampler's
REFERENCE = Path(__file__).parents[1] / "gemma_tpu" / "verify" / "reference_gemma.py"


def stand_in_for_kauldron():
    import jax
    import jaxtyping
    from flax import linen

    class Identity(linen.Module):
        def __call__(self, inputs, *_, **__):
            return inputs

    def of_shape(kind):  # gemma reads the shape of a batch from these
        return type("Typed", (), {"__class_getitem__": classmethod(lambda _, shape: kind[jax.Array, shape])})

    typing = {name: of_shape(getattr(jaxtyping, name)) for name in ("Bool", "Float", "Int", "UInt8")}
    typing |= {"Array": of_shape(jaxtyping.Shaped), "PyTree": list, "PRNGKey": Any, "PRNGKeyLike": Any}
    typing |= {"typechecked": lambda f: f, "check_type": lambda *_: None}
    sharding = SimpleNamespace(ShardingTree=Any, REPLICATED=None, with_sharding_constraint=lambda x, _: x)
    kd = {"nn": SimpleNamespace(Identity=Identity), "sharding": sharding, "typing": SimpleNamespace(**typing)}
    modules = {"": {}, ".typing": typing, ".kd": kd, ".kontext": {"Key": Any, "REQUIRED": None}}
    modules[".utils"] = {"immutabledict": SimpleNamespace(freeze_dict_attrs=lambda *_: None)}
    for name, names in modules.items():
        module = sys.modules[f"kauldron{name}"] = ModuleType(f"kauldron{name}")
        vars(module).update(names)
        vars(sys.modules["kauldron"])[name[1:]] = module


def load_reference():
    if importlib.util.find_spec("kauldron") is None:
        stand_in_for_kauldron()
    spec = importlib.util.spec_from_file_location("reference_gemma", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_params(theirs, model, checkpoint, dtype):
    jax = theirs.jax
    if checkpoint:
        return jax.tree.map(lambda x: x.astype(dtype), theirs.gm.ckpts.load_params(checkpoint))
    like = jax.eval_shape(model.init, jax.random.key(0), theirs.jnp.zeros((1, 1), int))["params"]
    draw = jax.jit(lambda key, x: 0.02 * jax.random.normal(key, x.shape, dtype), static_argnums=1)
    return jax.tree.map(lambda x: draw(jax.random.key(0), x), like)


def main():
    theirs, asked = load_reference(), json.loads(sys.stdin.readline())
    request = {"config": asked["config"], "size": None, "start_of_image": None, "double_newline": []}
    tokenizer = theirs.set_special_ids(request)
    model = theirs.build_model(request).clone(dtype=theirs.jnp.dtype(asked["dtype"]))
    sampler = theirs.gm.text.Sampler(
        model=model,
        params=make_params(theirs, model, asked["checkpoint"], asked["dtype"]),
        tokenizer=tokenizer,
        cache_length=asked["context"],
        max_out_length=asked["new"],
        pad_length=tuple(n for n in BUCKETS if n <= asked["context"]),
    )

    def answer(prompts, new):
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        state = sampler.sample(texts, max_new_tokens=new, rng=0, return_state=True).state
        return int(theirs.jax.block_until_ready(state).step) * len(prompts)

    for line in sys.stdin:
        level = json.loads(line)
        prompts, size = level["prompts"], level["in_flight"]
        while size:
            batches = [prompts[i : i + size] for i in range(0, len(prompts), size)]
            try:
                for batch in {len(b) * 10**6 + bucket(max(map(len, b))): b for b in batches}.values():
                    answer(batch, 2)
                begin = time.perf_counter()
                tokens = sum(answer(batch, level.get("new", asked["new"])) for batch in batches)
                break
            except theirs.jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                size //= 2
        seconds = time.perf_counter() - begin
        print(json.dumps({"in_flight": level["in_flight"], "batch": size, "tokens": tokens, "seconds": seconds}))
        sys.stdout.flush()


def bucket(length):
    return next((n for n in BUCKETS if length <= n), length)


if __name__ == "__main__":
    main()
