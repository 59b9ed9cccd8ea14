"""A loaded model that answers prompts, streams, chats, and gives logits."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gemma_tpu import prompts
from gemma_tpu.chat import Chat
from gemma_tpu.checks import check_flag, check_progress
from gemma_tpu.classify import Verdict, classify
from gemma_tpu.config import GemmaConfig
from gemma_tpu.constraint import Grammars
from gemma_tpu.deployment import IMAGE_BATCHES, Deployment
from gemma_tpu.engine.ahead import Ahead
from gemma_tpu.engine.engine import Engine
from gemma_tpu.engine.request import Constraint, ImageInput, Request
from gemma_tpu.engine.row_params import allowed_bits
from gemma_tpu.engine.validate import check_attention, check_length, check_logits
from gemma_tpu.engine.warmup import Progress
from gemma_tpu.model import Params
from gemma_tpu.options import Completion, SamplingParams
from gemma_tpu.picture import PlacedImage
from gemma_tpu.prompts import Images, Message, PlainPrompt, Reading, SinglePrompt
from gemma_tpu.stream import AsyncTextStream, TextStream, stop_watch
from gemma_tpu.teacher_forcing import AttentionMaps, of_prompt, read_sequences
from gemma_tpu.text import (
    GEMMA3,
    OPTIONS,
    Format,
    MakeReader,
    Prompt,
    Tokenizer,
    answer_text,
    read_tools,
)

_ANSWER_SHARE = 4  # a conversation that drops its oldest turns keeps a quarter of the context free for an answer


class Model:
    """Gemma 3 on a mesh, ready to answer. Made by `load`; thread-safe; `close` frees the device."""

    def __init__(
        self,
        deployment: Deployment,
        params: Params,
        tokenizer: Tokenizer | None,
        *,
        dtype_reason: str = "",
        defaults: SamplingParams | None = None,
        format: Format = GEMMA3,
        ahead: Ahead | None = None,
    ) -> None:
        self.deployment, self.params = deployment, params
        self.dtype_reason = dtype_reason  # why `load` has chosen it; "" where the caller did
        self._tokenizer, self.format = tokenizer, format
        self.defaults = defaults or SamplingParams()  # of this checkpoint, for the options that a call does not give
        ends = self.defaults.stop_tokens or ()
        self._never_written: list[int] = []
        if tokenizer is not None:
            ends = ends or (tokenizer.eos_id, tokenizer.end_of_turn)
            if (stop := tokenizer.find(format.stop or "")) is not None:
                ends = (*ends, stop)
            # An image can be shown to a model, not written by it.
            markers = tokenizer.start_of_image, tokenizer.end_of_image
            self._never_written += [token for token in markers if token is not None]
            self._never_written += tokenizer.ids_without_piece(deployment.config.vocab_size)
        self.end_tokens = ends  # of answers for which no other `stop_tokens` are asked
        self._grammars = None if tokenizer is None else Grammars(tokenizer, ends)
        self.engine = Engine(deployment, params, eos_tokens=ends, ahead=ahead)
        self._num_soft_tokens = deployment.num_soft_tokens
        weakref.finalize(self, self.engine.let_go).atexit = False  # at exit, an engine lets go by itself

    @property
    def config(self) -> GemmaConfig:
        return self.deployment.config

    @property
    def mesh(self) -> Mesh:
        return self.deployment.mesh

    @property
    def dtype(self) -> np.dtype:
        """That of weights, and of the cache unless its `kv_cache_dtype` is another."""
        return np.dtype(self.deployment.dtype)

    @property
    def tokenizer(self) -> Tokenizer:
        return prompts.require_tokenizer(self._tokenizer)

    def __repr__(self) -> str:
        text, vision = self.config, "text and images" if self.config.vision else "text"
        reason = f" ({self.dtype_reason})" if self.dtype_reason else ""
        data = self.mesh.shape["data"]
        dtype = f"{self.deployment.quantization} in {self.dtype}" if self.deployment.quantization else str(self.dtype)
        return (
            f"<gemma_tpu.Model: {text.num_layers} layers of {text.embed_dim}, {vision}, {dtype}{reason}, "
            f"mesh {data} × {self.mesh.size // data}>"
        )

    def close(self) -> None:
        """Stops the engine and lets go of the device memory."""
        self.engine.close()
        self.params = {}

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warmup(self, progress: Progress | None = None) -> int:
        """Compiles every program, so that no later request waits for it, and indexes the vocabulary for grammars.

        Returns how many programs there are.
        """
        check_progress(progress, bar=False)
        with ThreadPoolExecutor(1) as beside:
            if self._grammars:
                beside.submit(self._grammars.prepare)  # where it fails, the first grammar says so
            return self.engine.warmup(progress)

    def generate(
        self,
        prompt: SinglePrompt | Sequence[SinglePrompt],
        *,
        images: Images = None,
        raw: bool = False,
        pan_and_scan: bool = False,
        continue_final: bool = False,
        allow_urls: bool = False,
        drop_oldest: bool = False,
        client: Hashable = None,
        **options: Any,
    ) -> Completion | list[Completion] | list[list[Completion]]:
        """Answers one prompt, or a batch of them; each with a list of answers if more than one is asked for (`n`).

        A prompt is a string (one user message, its `images` shown before it), a list of messages in the shape of OpenAI
        or Hugging Face (see `gemma_tpu.text.render_messages`) or one such message, or token ids; a list of those, or an
        array [B, T] of ids, is a batch.

        Args:
          images: one or several, each in any form that `gemma_tpu.load_image` reads; with a string or token ids.
          raw: takes a string as it is, each `<start_of_image>` in it being the place of one of `images`.
          pan_and_scan: shows crops of an image that is far from square after it, for small print.
          continue_final: the last message is the assistant's, and the model goes on with it: the answer joins it.
          allow_urls: fetches images at http(s) addresses, which are otherwise refused.
          drop_oldest: see `stream`.
          client: who asks; requests of different clients take turns.
          options: see `SamplingParams`; those not given are the checkpoint's own (`defaults`). For Gemma 3 and
            FunctionGemma `tools`, functions as JSON schemas; for TranslateGemma `source_lang` and `target_lang`, codes
            such as "cs".

        ValueError for a prompt that is malformed, too long, or has the wrong number of images.
        """
        check_flag("drop_oldest", drop_oldest)
        reading, several = Reading(raw, pan_and_scan, continue_final, allow_urls), self._sampling_params(options).n > 1
        batch = prompts.read_batch(prompt)
        if batch is not None and prompts.as_list(images):
            raise ValueError("images= goes with a single prompt: in a batch, give conversations with images in them")
        with contextlib.ExitStack() as stack:  # on any way out, the work for all of them ends
            asked: list[list[TextStream]] = []
            for i, one in enumerate([prompt] if batch is None else batch):
                try:
                    streams = self._streams(cast(SinglePrompt, one), images, reading, options, drop_oldest, client)
                except ValueError as error:
                    if batch is None:
                        raise
                    raise ValueError(f"prompt[{i}]: {error}") from error
                asked.append([stack.enter_context(contextlib.closing(stream)) for stream in streams])
            answers = [[stream.finish() for stream in streams] for streams in asked]
        if several:
            return answers[0] if batch is None else answers
        first = [answer for answer, *_ in answers]
        return first[0] if batch is None else first

    def stream(
        self,
        prompt: SinglePrompt,
        *,
        images: Images = None,
        raw: bool = False,
        pan_and_scan: bool = False,
        continue_final: bool = False,
        allow_urls: bool = False,
        drop_oldest: bool = False,
        client: Hashable = None,
        **options: Any,
    ) -> TextStream:
        """Like `generate` for one prompt, as pieces of text that are final when they come.

        With `drop_oldest`, messages that have outgrown the context lose their oldest turns (a question and its answer,
        images and all) instead of being a ValueError; `dropped_turns` of the result says how many.
        """
        check_flag("drop_oldest", drop_oldest)
        self._require_one(options)
        reading = Reading(raw, pan_and_scan, continue_final, allow_urls)
        return self._streams(prompt, images, reading, options, drop_oldest, client)[0]

    def _streams(
        self,
        prompt: SinglePrompt,
        images: Images,
        reading: Reading,
        options: dict[str, Any],
        drop_oldest: bool,
        client: Hashable,
    ) -> list[TextStream]:
        """One for each of `n` answers."""
        plain, tokenizer = prompts.read_prompt(prompt), self.tokenizer
        _, requests, dropped = self._ask(plain, images, reading, options, drop_oldest, client)
        last: Any = plain[-1] if reading.continue_final else {}
        begun = answer_text(last["content"], "", strip=False) if last.get("role") in ("assistant", "model") else ""
        return [TextStream(request, tokenizer, dropped, begun, self._call_reader(options)) for request in requests]

    def astream(self, prompt: SinglePrompt, **options: Any) -> AsyncTextStream:
        """`stream` for asyncio, with the same arguments: `async for piece in model.astream("Hello")`.

        What is wrong with them is raised where the iteration begins, or by `AsyncTextStream.start`.
        """
        return AsyncTextStream(lambda: self.stream(prompt, **options))

    def waiting_before(self, stream: TextStream | AsyncTextStream) -> int | None:
        """How many other answers are begun before that of `stream`; None if it does not wait for a batch row."""
        return self.engine.waiting_before(stream._request)

    def chat(
        self,
        system: str | None = None,
        *,
        drop_oldest: bool = False,
        pan_and_scan: bool = False,
        allow_urls: bool = False,
        **options: Any,
    ) -> Chat:
        """A conversation that remembers its turns. What is given here holds for every answer, see `generate`.

        A conversation that has outgrown the context is a ValueError; with `drop_oldest` its oldest turns are forgotten
        instead, see `stream`, and `Chat.dropped_turns` says how many.
        """
        check_flag("drop_oldest", drop_oldest)
        self._require_one(options)
        return Chat(self, system, options, drop_oldest, Reading(pan_and_scan=pan_and_scan, allow_urls=allow_urls))

    def logits(
        self,
        tokens: Any,
        images: Images = None,
        *,
        positions: Any = None,
        allow_urls: bool = False,
    ) -> jax.Array:
        """Teacher-forced logits: int[B, T] → float32[B, T, V]; with `positions`, K of the T, float32[B, K, V].

        Each `<start_of_image>` is expanded into the block of the next image of its row (`images`: a list per row). The
        result has one row per token given; that of a `<start_of_image>` belongs to the first token of its block, as in
        Google's implementation. A row with its images may have as many tokens as the context (`max_context`), and a
        result 2 GiB; ValueError otherwise. A new length compiles, on the caller's thread; lengths are padded to powers
        of two for that.
        """
        given = tokens, images, positions, Reading(allow_urls=allow_urls)
        sequences = read_sequences(self.deployment, self._tokenizer, *given, check_logits)
        return self.engine.logits(sequences.rows, sequences.at, self.engine.image_inputs(sequences.images))

    def attention(
        self,
        tokens: Any,
        images: Images = None,
        *,
        positions: Any = None,
        allow_urls: bool = False,
        continue_final: bool = False,
        pan_and_scan: bool = False,
    ) -> AttentionMaps:
        """Where the attention of tokens went, teacher-forced: float32[B, K, L, N, S]. Arguments as of `logits`.

        A list of messages is one row, in the chat format as `generate` takes them; `positions` are then of its tokens
        with its images, of which -1 is the last, and the last two arguments are as there.

        Each token is drawn from the logits of the one before it: what the model looked at when it wrote token t is the
        attention of position t - 1. That of a `<start_of_image>` is that of the first token of its block.

        A row may have as many tokens as the context, and the weights of all positions 2 GiB, both numbers padded to
        powers of two; ValueError otherwise. A new pair of them compiles, on the caller's thread.
        """
        reading = Reading(pan_and_scan=pan_and_scan, allow_urls=allow_urls, continue_final=continue_final)
        if prompts.are_messages(tokens):
            sequences = of_prompt(self._render(list(tokens), images, reading), positions)
        elif continue_final or pan_and_scan:
            raise ValueError("continue_final and pan_and_scan go with messages")
        else:
            given = tokens, images, positions, reading
            sequences = read_sequences(self.deployment, self._tokenizer, *given, check_attention)
        inputs = self.engine.image_inputs(sequences.images)
        weights = self.engine.attention(sequences.rows, sequences.at, inputs)
        return AttentionMaps(weights, sequences.rows, sequences.at, sequences.image_starts, self._num_soft_tokens)

    def last_logits(self, messages: Sequence[Message]) -> jax.Array:
        """float32[V]: the logits of the first token of an answer to `messages`."""
        prompt = self._render(prompts.read_messages(messages), None, Reading())
        last = np.array([[len(prompt.tokens) - 1]], np.int32)
        return self.engine.logits([prompt.tokens], last, [one.image for one in self._placed_inputs(prompt)])[0, 0]

    def classify(
        self, images: Images, policies: Sequence[str] | Mapping[str, str] | None = None
    ) -> list[dict[str, Verdict]]:
        """ShieldGemma 2: how likely each image violates each policy. See `gemma_tpu.classify.classify`."""
        return classify(self, images, policies)

    def encode_images(self, images: Images, *, allow_urls: bool = False) -> jax.Array:
        """Soft tokens float32[I, soft, D] of one or several images in any form `generate` takes."""
        if not (given := prompts.as_list(images)):
            raise ValueError("no images given")
        inputs = self.engine.image_inputs(Reading(allow_urls=allow_urls).images(given))
        size = IMAGE_BATCHES[0]  # of each call, between which others go on
        batches = [self.engine.encode_images(inputs[i : i + size]) for i in range(0, len(inputs), size)]
        return jnp.stack([soft for batch in batches for soft in batch]).astype(jnp.float32)

    def _placed_inputs(self, prompt: Prompt) -> list[PlacedImage[ImageInput]]:
        inputs = self.engine.image_inputs([placed.image for placed in prompt.images])
        return [PlacedImage(placed.start, image) for placed, image in zip(prompt.images, inputs, strict=True)]

    def _sampling_params(self, options: dict[str, Any]) -> SamplingParams:
        known = [field.name for field in dataclasses.fields(SamplingParams)]
        if unknown := sorted(options.keys() - {*known, *OPTIONS}):
            raise ValueError(f"unknown option {', '.join(unknown)}; the options are {', '.join(known)}")
        given = {name: value for name, value in options.items() if name in known}
        asked = dataclasses.replace(self.defaults, **given)
        forbidden = (*asked.forbidden_tokens, *self._never_written)
        return dataclasses.replace(asked, forbidden_tokens=forbidden, bad_words=self._token_sequences(asked.bad_words))

    def _token_sequences(self, words: Sequence[str | Sequence[int]]) -> list[Sequence[int]]:
        """Strings as they are written at the beginning of a line, and after a space."""
        sequences: list[Sequence[int]] = []
        for word in words:
            written = isinstance(word, str)
            sequences += [self.tokenizer.encode(form) for form in (word, f" {word}")] if written else [word]
        return sequences

    def _call_reader(self, options: dict[str, Any]) -> MakeReader:
        """Makes what finds calls in an answer to a prompt with these options."""
        return functools.partial(self.format.call_reader, read_tools(options.get("tools")))

    def _ask(
        self,
        prompt: PlainPrompt,
        images: Images,
        reading: Reading,
        options: dict[str, Any],
        drop_oldest: bool,
        client: Hashable = None,
    ) -> tuple[PlainPrompt, list[Request], int]:
        """The prompt, without its oldest turns where those were dropped; requests for `n` answers; how many they were.

        `options`: of sampling and of the prompt format.
        """
        sampling_params = self._sampling_params(options)
        given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
        self.format.check(given)
        reading = dataclasses.replace(reading, format_options=given)
        rendered, dropped = self._render(prompt, images, reading), 0
        if drop_oldest and isinstance(prompt, list) and isinstance(prompt[0], Mapping):
            # The answer needs room too: what would leave it less than its share is as what is longer than the context.
            context = self.deployment.context
            limit = context - min(sampling_params.max_new_tokens, context // _ANSWER_SHARE)
            render = functools.partial(self._render, images=None, reading=reading)
            prompt, rendered, dropped = prompts.drop_oldest(cast(list[Message], prompt), rendered, limit, render)
        check_length(len(rendered.tokens), self.deployment.context)  # before the work that images are
        inputs, requests = self._placed_inputs(rendered), []
        try:
            for i in range(sampling_params.n):
                seed = None if sampling_params.seed is None else (sampling_params.seed + i) % 2**32
                params = dataclasses.replace(sampling_params, seed=seed)
                watch = stop_watch(self.tokenizer, params.stop) if params.stop else None
                constraint = self._constraint(params)
                requests.append(self.engine.submit(rendered.tokens, inputs, params, watch, constraint, client))
            if (top := sampling_params.prompt_logprobs) is not None:
                scored = self.engine.prompt_logprobs(rendered.tokens, [placed.image for placed in inputs], top)
                for request in requests:
                    request.prompt_logprobs = scored
        except BaseException:  # Ctrl-C too: those that were submitted have no reader yet who would cancel them
            for request in requests:
                request.cancel()
            raise
        return prompt, requests, dropped

    def _require_one(self, options: dict[str, Any]) -> None:
        """ValueError unless `options` are right and ask for one answer."""
        if (n := self._sampling_params(options).n) > 1:
            raise ValueError(f"n is {n}, and a stream or a chat gives one answer: ask for more with generate")

    def _constraint(self, params: SamplingParams) -> Constraint | None:
        if params.grammar is None:
            return None
        prompts.require_tokenizer(self._tokenizer)
        assert self._grammars is not None  # since there is a tokenizer
        never = [*params.forbidden_tokens, *(word[0] for word in params.bad_words if len(word) == 1)]
        allowed = allowed_bits(self.config.vocab_size, params.allowed_token_ids, cast(list[int], never))
        return self._grammars.constraint(params.grammar, allowed)

    def _render(self, prompt: PlainPrompt, images: Images, reading: Reading) -> Prompt:
        return prompts.render(prompt, images, self.format, self._tokenizer, self._num_soft_tokens, reading)
