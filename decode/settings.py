"""What can a person ask of decoding? One flat set of names; every default leaves the model's distribution alone.

Names are Hugging Face's where it has one, otherwise vLLM's or llama.cpp's. What contradicts itself is
refused here, before anything is computed.
"""

import dataclasses
from typing import Any

from decode import checks
from decode.checks import Ids


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a prompt is continued. The defaults sample from the model's own distribution, nothing filtered.

    A number's default is its "off" where it can be off. Lists may be given as lists or tuples, and
    `logit_bias` as a mapping. `docs/decoding.md` has every name with its formula and source.

    Attributes:
        max_new_tokens: a cap; an end-of-sequence token, or the end of the context window, comes sooner.
        min_new_tokens: before so many, neither an end token nor a stop string ends a completion.
        temperature: divides the logits; 0 is greedy, and then nothing is filtered or drawn.
        dynatemp_range, dynatemp_exponent: the temperature moves within so much of `temperature` with the entropy.
        top_k: keeps the k most likely tokens, and those that tie with the last of them; 0 keeps all.
        top_p: keeps the smallest set of most likely tokens whose mass reaches p; 1 keeps all.
        min_p, typical_p, epsilon_cutoff, eta_cutoff, top_n_sigma, top_h: other ways to cut the tail.
        xtc_probability, xtc_threshold: how often all but the least of the tokens above the threshold are left out.
        mirostat: 2 steers the surprise towards `mirostat_tau` bits, at a rate of `mirostat_eta`.
        repetition_penalty, presence_penalty, frequency_penalty: of tokens that have occurred; the last
            `penalty_last_n` count, -1 is all.
        encoder_repetition_penalty: above 1 favours the tokens of the source, or the prompt.
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers: of what would go on
            repeating a sequence.
        no_repeat_ngram_size, encoder_no_repeat_ngram_size: no n-gram twice, or none of the source.
        logit_bias: {token: what is added to its logit}.
        sequence_bias: {(tokens): what is added to the last one's logit behind the others}.
        bad_words: texts or lists of tokens that must not come.
        allowed_token_ids, suppress_tokens, begin_suppress_tokens: the only ones; never; not as the first.
        forced_bos_token_id, forced_tokens, forced_eos_token_id: what the first token, the first tokens and the last
            before the cap must be.
        exponential_decay_length_penalty: (start, factor): end tokens gain, ever more, after so many tokens.
        stop: texts that end a completion, and are left out of it.
        stop_token_ids: end a completion as an end-of-sequence token does; `ignore_eos` leaves only them.
        n: completions of the same prompt; fewer of them are the first of more.
        best_of: so many are made, and the n of the highest log-probability are kept.
        do_sample: None draws unless the temperature is 0 or there are beams; True draws in beams too.
        num_beams, length_penalty, length_rule, early_stopping: beam search, its n best; the rule is "hf" or "t5".
        num_beam_groups, diversity_penalty: diverse beam search.
        penalty_alpha: contrastive search among the `top_k` likeliest.
        dola_layers: "low", "high" or layer numbers: what early layers say is subtracted.
        guidance_scale, negative_prompt: classifier-free guidance away from another prompt.
        contrastive_beta, contrastive_alpha: contrastive decoding against an amateur model.
        num_assistant_tokens: drafted at a time by a draft model.
        prompt_lookup_num_tokens, max_matching_ngram_size: drafted at a time from the text so far.
        regex, json_schema, grammar: what the completion must match; a grammar in Lark's notation.
        preset: whose order, ties and boundaries: "hf", "vllm", "llama.cpp" or "strict".
        likelihood: whether rank, entropy and kept mass are recorded for each token.
        prompt_logprobs: whether the prompt's own log-probabilities are.
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    top_n_sigma: float = 0.0
    top_h: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = -1
    encoder_repetition_penalty: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Any = ("\n", ":", '"', "*")
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    logit_bias: Any = ()
    sequence_bias: Any = ()
    bad_words: Any = ()
    allowed_token_ids: Ids = ()
    suppress_tokens: Ids = ()
    begin_suppress_tokens: Ids = ()
    forced_bos_token_id: int | None = None
    forced_tokens: Ids = ()
    forced_eos_token_id: int | None = None
    exponential_decay_length_penalty: Any = None
    stop: Any = ()
    stop_token_ids: Ids = ()
    ignore_eos: bool = False
    n: int = 1
    best_of: int = 0
    do_sample: bool | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    length_rule: str = "hf"
    early_stopping: Any = False
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    penalty_alpha: float = 0.0
    dola_layers: Any = None
    guidance_scale: float = 1.0
    negative_prompt: Any = None
    contrastive_beta: float = 0.0
    contrastive_alpha: float = 0.1
    num_assistant_tokens: int = 0
    prompt_lookup_num_tokens: int = 0
    max_matching_ngram_size: int = 2
    regex: str | None = None
    json_schema: Any = None
    grammar: str | None = None
    preset: str = "hf"
    likelihood: bool = False
    prompt_logprobs: bool = False

    def __post_init__(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in checks.check(self, defaults).items():
            object.__setattr__(self, name, value)
        checks.contradictions(self)

    @property
    def drawn(self) -> bool:
        """Whether tokens are drawn; otherwise the largest score is taken."""
        wanted = self.num_beams == 1 if self.do_sample is None else self.do_sample
        return self.temperature > 0 and wanted and not self.penalty_alpha

    @property
    def drafts(self) -> int:
        """How many tokens are proposed at a time."""
        return self.num_assistant_tokens or self.prompt_lookup_num_tokens

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that are not at their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: value for f in fields if (value := getattr(self, f.name)) != f.default}

    @property
    def constrained(self) -> bool:
        """Whether a grammar of any kind rules the completion."""
        return any(getattr(self, name) is not None for name in checks.CONSTRAINTS)


def numeric() -> dict[str, type]:
    """The names of the settings that are numbers, with `int` or `float`: those that the loop keeps as arrays."""
    fields = dataclasses.fields(Settings)
    return {
        f.name: type(f.default) for f in fields if type(f.default) in (int, float) and f.name != "n"
    }
