"""What every mixture answers in one way, wherever its experts meet; each place says only how it answers one `Query`.

Shapes: B rows, T positions, V vocabulary, S slots.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.utils import GenerateOutput

from coterie.dates import Time
from coterie.errors import RequestError
from coterie.mixtures import completion
from coterie.mixtures import mixture_files as files
from coterie.mixtures.mixture_files import MixtureConfig, Slot
from coterie.mixtures.query import Layout, Query, Times, refuse_date
from coterie.routing.eligibility import Eligibility
from coterie.store.admit import admit

if TYPE_CHECKING:
    from peft import PeftModel

    from coterie.corpora.given_texts import Texts

Model: TypeAlias = "PreTrainedModel | PeftModel | str | Path"
"""A model in memory, one with a LoRA adapter, a directory of either, or a hub id."""
Span = tuple[Time, Time]
"""First day, and first day after it."""


class Source(Protocol):
    """What makes a mixture anew: with its router fitted on texts, or with other experts; see `coterie.api.remaking`."""

    @property
    def folder(self) -> Path:
        """The directory that it was opened from."""

    def fit(self, mixture: Mixture, texts: Texts | Mapping[str, Texts]) -> Mixture: ...

    def add(
        self, mixture: Mixture, name: str, model: Model, *, slots: int, window: Span | None, texts: Texts | None
    ) -> Mixture: ...

    def remove(self, mixture: Mixture, name: str) -> Mixture: ...

    def export(self, mixture: Mixture, format: str, folder: str | Path, *, expand: bool, dtype: str | None) -> None: ...


class NumberedSlot(Slot):
    """A slot as people see it."""

    slot: int


class Mixture(PreTrainedModel, GenerationMixin):
    """Slots over experts, and a router.

    Attributes:
        experts: each distinct expert's own weights: at outputs its model, at layers its feed-forward blocks, at adapters its
            LoRA factors. ``m.experts[slot["expert"]]`` is the one in a slot, ``m.names`` are their names.
        router: what decides: at layers a list of gates, elsewhere one module.
        tokenizer: None where the directory holds none.
    """

    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    config: MixtureConfig
    tokenizer: PreTrainedTokenizerBase | None = None

    if TYPE_CHECKING:

        @property
        def experts(self) -> Sequence[object] | nn.ModuleList: ...

        @property
        def router(self) -> object: ...

    @property
    def slots(self) -> list[NumberedSlot]:
        """Number, name and expert (its index in `experts`) of each slot."""
        return [{"slot": i, **slot} for i, slot in enumerate(self.config.slots)]

    @property
    def names(self) -> list[str]:
        """Of the distinct experts."""
        return self.config.names

    @property
    def eligibility(self) -> Eligibility:
        """Which experts a date may use."""
        return self.config.eligibility

    goes_by_dates: ClassVar[bool] = True
    """Whether a date can rule experts out; where it cannot, to give one is an error."""
    source: Source | None = None
    """Makes it anew; None where `coterie.mix` and `coterie.load` had no part in it."""

    def fit(self, texts: Texts | Mapping[str, Texts]) -> Self:
        """Fit the router or the gates; experts stay as they are.

        Args:
            texts: held-out texts; gates that learn whose data a text is take them by expert.

        Raises:
            RequestError: nothing is to be fitted, or the texts are given in the wrong form.
        """
        return self._become(self._source.fit(self, texts))

    def add(
        self, name: str, model: Model, *, slots: int = 1, window: Span | None = None, texts: Texts | None = None
    ) -> Self:
        """Give a model a seat. A fitted router is fitted again on the texts that it was fitted on; where they are not known
        (of a mixture opened from a directory), weights are equal until `fit`.

        Args:
            slots: how many.
            window: start and end of what it has read, where dates rule.
            texts: of this expert, where the router is fitted on texts of each.

        Raises:
            RequestError: the name is taken, or the model does not go with the others.
        """
        return self._become(self._source.add(self, name, model, slots=slots, window=window, texts=texts))

    def remove(self, name: str) -> Self:
        """Take an expert out, with all its slots. What `add` says of the router holds.

        Raises:
            RequestError: there is no such expert, or no other.
        """
        return self._become(self._source.remove(self, name))

    def export(self, format: str, folder: str | Path, *, expand: bool = False, dtype: str | None = None) -> None:
        """Write a checkpoint that other tools load, as ``coterie export`` does.

        Args:
            format: ``mixtral``, ``qwen2_moe``, ``qwen3_moe``, ``flex_olmo``, ``gguf`` or ``coterie``.
            expand: write a copy of its expert for every slot.
            dtype: ``fp32``, ``bf16``, ``fp16``, for gguf also ``q8_0``; the mixture's own by default.

        Raises:
            RequestError: the format cannot hold it.
        """
        self._source.export(self, format, folder, expand=expand, dtype=dtype)

    @property
    def _source(self) -> Source:
        if self.source is None:
            raise RequestError(
                "what this mixture was made of is not known", do="make it with coterie.mix, or open it with coterie.load"
            )
        return self.source

    def _become(self, other: Mixture) -> Self:
        """Take over another mixture's whole state: the two are one from then on."""
        nn.Module.to(other, self.device)
        object.__setattr__(self, "__dict__", other.__dict__)
        return self

    @abstractmethod
    def _log_probs(self, query: Query) -> Float[Tensor, "B T V"]:
        raise NotImplementedError

    @abstractmethod
    def _nll(self, query: Query) -> Float[Tensor, "B T-1"]:
        raise NotImplementedError

    @abstractmethod
    def _weights(self, query: Query) -> Float[Tensor, "B T S"]:
        raise NotImplementedError

    @abstractmethod
    def _generate(self, inputs: Tensor | None, *args: Any, time: Times, **options: Any) -> Any:
        raise NotImplementedError

    @classmethod
    @abstractmethod
    def _open(cls, folder: Path, config: MixtureConfig | None, options: Mapping[str, Any]) -> Self:
        """From a directory: all but tokenizer and generation settings.

        Args:
            config: instead of the directory's.
            options: of `from_pretrained`.
        """

    @abstractmethod
    def _save(self, folder: Path, options: Mapping[str, Any]) -> PretrainedConfig:
        """Write the experts and the router; the tokenizer is there already. Returns the configuration to write."""

    def query(self, ids_BT: Int[Tensor, "B T"], time: Times = None, past: int = 0, **layout: Unpack[Layout]) -> Query:
        """A question to this mixture, ``past`` tokens after the beginning."""
        if not self.goes_by_dates:
            refuse_date(time, len(ids_BT))
        return Query.of(ids_BT, self.eligibility, time=time, past=past, **layout)

    @torch.no_grad()
    def log_probs(self, ids_BT: Int[Tensor, "B T"], time: Times = None, **layout: Unpack[Layout]) -> Float[Tensor, "B T V"]:
        """log P(x_{t+1} | x_{<=t}) in nats.

        Args:
            time: date of the question, or one for each row; an error at layers and adapters, where it could have no effect.
            layout: ``attention_mask``, and ``position_ids``, which keep documents apart where they restart at 0.
        """
        return self._log_probs(self.query(ids_BT, time, **layout))

    @torch.no_grad()
    def nll(self, ids_BT: Int[Tensor, "B T"], time: Times = None, **layout: Unpack[Layout]) -> Float[Tensor, "B T-1"]:
        """-log P of each next token in nats; 0 where it is padding or begins a document."""
        return self._nll(self.query(ids_BT, time, **layout))

    @torch.no_grad()
    def weights(self, ids_BT: Int[Tensor, "B T"], time: Times = None, **layout: Unpack[Layout]) -> Float[Tensor, "B T S"]:
        """Weights over slots at each position, for predicting the next token; at layers and adapters the mean over gates."""
        return self._weights(self.query(ids_BT, time, **layout))

    def complete(
        self,
        text: str | Sequence[str],
        time: Times = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        chat: bool = False,
    ) -> str | list[str]:
        """What follows a text, or each of several, without the text itself.

        Args:
            temperature: 0 takes the likeliest token at every step.
            stop: end before the first of these strings.
            chat: ask it as a user does, in the tokenizer's chat template; what follows is the assistant's answer.

        A prompt that leaves no room for ``max_new_tokens`` loses its beginning, as in training.
        """
        if self.tokenizer is None:
            raise RequestError("this mixture has no tokenizer", do="set m.tokenizer, or call generate with ids")
        if temperature == 0 and (top_k, top_p, seed) != (None, None, None):
            raise RequestError("top_k, top_p and seed have no effect at temperature 0", where="temperature", do="raise it")
        if temperature < 0:
            raise RequestError("a temperature is not negative", where="temperature", found=str(temperature))
        texts, pad = [text] if isinstance(text, str) else list(text), self.generation_config.pad_token_id or 0
        context, stops = self.config.max_position_embeddings, [stop] if isinstance(stop, str) else list(stop or ())
        ids_BT, mask_BT = completion.prompts(texts, self.tokenizer, context, max_new_tokens, pad, chat=chat)
        options: dict[str, object] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens, "pad_token_id": pad}
        if temperature > 0:
            top_p = 1.0 if top_p is None else top_p
            options |= {"temperature": temperature, "top_k": top_k or 0, "top_p": top_p}
        if stops:
            options |= {"stop_strings": stops, "tokenizer": self.tokenizer}
        mask_BT = mask_BT.to(self.device)
        out_BT = self.generate(ids_BT.to(self.device), attention_mask=mask_BT, time=time, seed=seed, **options)
        assert isinstance(out_BT, Tensor)
        new_BT = out_BT[:, ids_BT.shape[1] :]
        answers = [completion.before(stops, one) for one in self.tokenizer.batch_decode(new_BT, skip_special_tokens=True)]
        return answers[0] if isinstance(text, str) else answers

    def generate(  # type: ignore[override]
        self, inputs: Tensor | None = None, *args: object, time: Times = None, seed: int | None = None, **options: object
    ) -> Tensor | GenerateOutput:
        """Hugging Face's, on ids.

        Args:
            time: date of the question, or one for each row.
            seed: makes sampling repeatable without touching the global generator.
        """
        with _repeatable(seed, self.device):
            return self._generate(inputs, *args, time=time, **options)

    def save_pretrained(self, save_directory: str | Path, **options: object) -> None:  # type: ignore[override]
        """Write a mixture directory: each distinct expert once; opens with `from_pretrained`, `coterie.load` and the Auto
        classes.

        Raises:
            RequestError: it is the directory that the mixture was opened from, whose files may be shared with a store.
        """
        folder = Path(save_directory)
        if self.name_or_path and folder.exists() and folder.resolve() == Path(self.name_or_path).resolve():
            raise RequestError("the mixture was opened from there", where=str(folder), do="save it to another directory")
        folder.mkdir(parents=True, exist_ok=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        config = self._save(folder, options)
        config.architectures = [type(self).__name__]
        config.save_pretrained(folder)
        self.generation_config.save_pretrained(folder)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: object,
        config: MixtureConfig | None = None,
        output_loading_info: bool = False,
        **options: object,
    ) -> Self:
        """Open a mixture directory, strictly: nothing missing, nothing unexpected."""
        folder = Path(pretrained_model_name_or_path)
        admit(folder)
        model = cls._open(folder, config, options)
        model.tokenizer = files.open_tokenizer(folder)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.name_or_path = str(folder)
        report: dict[str, list[str]] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return (model, report) if output_loading_info else model  # type: ignore[return-value]  # as in the library


@contextmanager
def _repeatable(seed: int | None, device: torch.device) -> Iterator[None]:
    """With a seed, random numbers follow from it inside, and the global generators outside go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
