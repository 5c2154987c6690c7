"""The config: a recipe resolved, complete and typed. The launcher writes it as JSON, the trainer reads nothing else.

Every path in it is absolute. Unknown fields are refused on both sides, so launcher and trainer cannot drift apart unseen.
This module must not import torch: the launcher loads it on machines that have none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1

Stage = Literal["pt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "simpo", "grpo"]
FinetuningType = Literal["full", "freeze", "lora", "oft"]
Attention = Literal["auto", "disabled", "sdpa", "fa2", "fa3"]
Formatting = Literal["alpaca", "sharegpt", "openai"]


SpeedPart = Literal["graphs", "kernels", "kept", "lora", "norms", "loss", "copies"]
"""Steps as CUDA graphs; compiled kernels; layers that are not recomputed though the recipe recomputes them; LoRA layers as one function;
norms as one; the loss by chunks of logits, where labels count; 16-bit copies of trained weights that are kept from step to step."""


class Part(BaseModel):
    """Base of every part of the config: frozen, no unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Quantization(Part):
    """On-the-fly quantization of the base model (QLoRA)."""

    method: Literal["bnb"] = "bnb"
    bits: Literal[4, 8] = 4
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True


class Model(Part):
    """Which weights, and how they are loaded."""

    name: str
    """As the recipe said it: a folder, a hub name, a GGUF file, or `builtin/NAME`. Shown and recorded, never opened."""
    path: str
    """What the trainer opens: a folder, a hub name, or the GGUF file; for `builtin/tiny-*` the name itself."""
    kind: Literal["folder", "hub", "gguf", "tiny"]
    converted: str | None = None
    """Folder for the converted weights of a GGUF file; writable, kept between runs. None: convert in memory."""
    revision: str = "main"
    adapters: tuple[str, ...] = ()
    """Adapters to merge before training; the last one is continued unless `create_new_adapter` is set."""
    trust_remote_code: bool = False
    attention: Attention = "auto"
    quantization: Quantization | None = None
    train_from_scratch: bool = False
    gradient_checkpointing: bool = True
    use_reentrant_gc: bool = True
    upcast_layernorm: bool = False
    upcast_lmhead_output: bool = False
    liger: bool = False
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3"] | None = None
    moe_aux_loss_coef: float | None = Field(default=None, ge=0)
    use_fast_tokenizer: bool = True
    split_special_tokens: bool = False
    resize_vocab: bool = False
    add_tokens: tuple[str, ...] = ()
    add_special_tokens: tuple[str, ...] = ()


class Columns(Part):
    """Column names of a data set; None: the data set has no such column."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


class Tags(Part):
    """Names used inside sharegpt and openai messages."""

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


class Dataset(Part):
    """One data set: an entry of dataset_info.json, resolved."""

    name: str
    source: Literal["file", "hub"]
    path: str
    """Absolute path of a file or of a folder of files of one type, or the hub's name; for a hub's repository that is here its folder."""
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = Field(default=None, ge=1)
    formatting: Formatting = "alpaca"
    ranking: bool = False
    columns: Columns = Columns()
    tags: Tags = Tags()
    guess: bool = False
    """It has no entry of dataset_info.json: formatting, columns and tags are read off its first row."""


class Data(Part):
    """What is trained on, and how rows become tokens."""

    train: tuple[Dataset, ...] = ()
    eval: tuple[Dataset, ...] = ()
    media_dir: str | None = None
    template: str | None = None
    """Name of a bundled chat template; None: the tokenizer's own."""
    tool_format: str | None = None
    """How tools and calls are written, in place of the template's way."""
    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False
    """Thoughts of earlier answers stay where only the last answer is learned."""
    cutoff_len: int = Field(default=2048, ge=1)
    train_on_prompt: bool = False
    mask_history: bool = False
    packing: bool = False
    neat_packing: bool = False
    max_samples: int | None = Field(default=None, ge=1)
    val_size: float = Field(default=0.0, ge=0)
    """Below 1 a share of the rows, else a number of rows."""
    max_dropped: float = Field(default=0.5, ge=0, le=1)
    """The share of a data set's rows that may be left out; above it the run is refused."""
    eval_on_each_dataset: bool = False
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = "concat"
    interleave_probs: tuple[float, ...] = ()
    streaming: bool = False
    buffer_size: int = Field(default=16384, ge=1)
    preprocessing_batch_size: int = Field(default=1000, ge=1)
    preprocessing_num_workers: int | None = Field(default=None, ge=1)
    overwrite_cache: bool = False
    tokenized_path: str | None = None
    ignore_pad_token_for_loss: bool = True
    shuffle: bool = True


class Lora(Part):
    """LoRA and its kin."""

    rank: int = Field(default=8, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    """None: twice the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target: tuple[str, ...] = ("all",)
    additional_target: tuple[str, ...] = ()
    rslora: bool = False
    dora: bool = False
    pissa_init: bool = False
    pissa_iter: int = 16
    pissa_convert: bool = False
    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float = 1e-6
    create_new_adapter: bool = False


class Oft(Part):
    """Orthogonal fine-tuning."""

    rank: int = 0
    block_size: int = 32
    target: tuple[str, ...] = ("all",)
    module_dropout: float = Field(default=0.0, ge=0, lt=1)


class Freeze(Part):
    """Training of some layers only."""

    trainable_layers: int = 2
    """Positive: the last n layers, negative: the first n."""
    trainable_modules: tuple[str, ...] = ("all",)
    extra_modules: tuple[str, ...] = ()


class LowRank(Part):
    """GaLore or APOLLO: the optimizer's moments of the chosen matrices are kept in few dimensions."""

    kind: Literal["galore", "apollo"]
    target: tuple[str, ...] = ("all",)
    rank: int = Field(default=16, ge=1)
    update_interval: int = Field(default=200, ge=1)
    scale: float = 2.0
    proj_type: Literal["std", "reverse_std", "right", "left", "full"] = "std"
    layerwise: bool = False
    proj: Literal["svd", "random"] = "random"
    scale_type: Literal["channel", "tensor"] = "channel"
    scale_front: bool = False


class Badam(Part):
    """BAdam: one block of layers is trained at a time."""

    mode: Literal["layer", "ratio"] = "layer"
    start_block: int | None = None
    switch_mode: Literal["ascending", "descending", "random", "fixed"] = "ascending"
    switch_interval: int = Field(default=50, ge=1)
    update_ratio: float = Field(default=0.05, gt=0, le=1)
    mask_mode: Literal["adjacent", "scatter"] = "adjacent"
    verbose: int = 0


class Grpo(Part):
    """Stage grpo, by TRL's names. Stage ppo takes the reward functions too."""

    reward_funcs: tuple[str, ...] = ()
    """Names of fl_trainers.rewards, or FILE.py:FUNCTION with an absolute path."""
    reward_weights: tuple[float, ...] = ()
    num_generations: int = Field(default=8, ge=2)
    max_completion_length: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    backend: Literal["transformers", "vllm"] = "transformers"
    """What makes the completions."""
    memory: float = Field(default=0.3, gt=0, lt=1)
    """Share of the device's memory that vLLM takes."""
    beta: float = Field(default=0.0, ge=0)
    epsilon: float = 0.2
    epsilon_high: float | None = None
    num_iterations: int = Field(default=1, ge=1)
    loss_type: Literal["grpo", "dapo", "bnpo", "dr_grpo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    mask_truncated_completions: bool = False


class Preference(Part):
    """Stages dpo, orpo, simpo and kto."""

    loss: Literal["sigmoid", "hinge", "ipo", "kto_pair"] = "sigmoid"
    beta: float = Field(default=0.1, gt=0)
    ftx: float = Field(default=0.0, ge=0)
    """Weight of supervised fine-tuning on the better answer."""
    bco_weight: float = Field(default=0.0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    simpo_gamma: float = 0.5
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    kto_chosen_weight: float = Field(default=1.0, gt=0)
    kto_rejected_weight: float = Field(default=1.0, gt=0)


class Other(Part):
    """A second model beside the one that is trained: what it is compared with, or what judges its answers. It is never trained."""

    name: str
    path: str
    kind: Literal["folder", "hub", "tiny"]
    adapters: tuple[str, ...] = ()
    quantization: Quantization | None = None


class Ppo(Part):
    """Stage ppo, by LLaMA-Factory's names. Answers are judged by a reward model, by a reward adapter, or by grpo's reward functions."""

    reward_model: Other | None = None
    """With a value head beside its last adapter or its weights."""
    reward_adapter: str | None = None
    """A folder with an adapter and a value head, which stand on the base of the adapter that is trained."""
    epochs: int = Field(default=4, ge=1)
    buffer_size: int = Field(default=1, ge=1)
    """Batches of answers collected before they are learned from."""
    score_norm: bool = False
    target: float = Field(default=6.0, gt=0)
    """Distance to the reference that the weight of this distance aims at."""
    whiten_rewards: bool = False


class Method(Part):
    """What is trained of the model, and towards what."""

    stage: Stage = "sft"
    finetuning_type: FinetuningType = "lora"
    lora: Lora = Lora()
    oft: Oft = Oft()
    freeze: Freeze = Freeze()
    grpo: Grpo = Grpo()
    preference: Preference = Preference()
    reference: Other | None = None
    """What dpo, kto and ppo compare with; None: the model as it was."""
    ppo: Ppo = Ppo()
    use_llama_pro: bool = False
    """Freeze and LoRA act on the layers that an expansion added."""
    low_rank: LowRank | None = None
    badam: Badam | None = None
    use_adam_mini: bool = False
    use_muon: bool = False
    pure_bf16: bool = False
    use_dft_loss: bool = False
    use_asft_loss: bool = False
    asft_alpha: float = 0.1
    use_eaft_loss: bool = False
    eaft_alpha: float = 1.0
    compute_accuracy: bool = False
    early_stopping_steps: int | None = None


class Training(Part):
    """The loop. `arguments` are transformers' TrainingArguments by name, already checked for name and type."""

    output_dir: str
    overwrite_output_dir: bool = False
    resume_from_checkpoint: str | bool | None = None
    """A checkpoint folder; True: the last one of output_dir; None: the last one if there is any and nothing is overwritten."""
    do_train: bool = True
    do_eval: bool = False
    do_predict: bool = False
    predict_with_generate: bool = False
    plot_loss: bool = True
    speed: Literal["auto", "off", "memory", "speed"] = "auto"
    """How steps are computed: off: as transformers has it; memory: without padding; speed: with all of the device's memory;
    auto: speed where it is known to pay."""
    speed_without: tuple[SpeedPart, ...] = ()
    """Parts of the fast steps (fast/choice.py) that are left out."""
    arguments: dict[str, Any] = Field(default_factory=dict)


class Generation(Part):
    """How answers are generated (predictions and the comparison at the end)."""

    do_sample: bool = True
    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    num_beams: int = 1
    max_new_tokens: int = 1024
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    skip_special_tokens: bool = True


class Run(Part):
    """What the launcher decided and the trainer must know."""

    name: str
    lane: Literal["cuda", "rocm", "ascend", "xpu", "cpu"]
    stack: str
    events: str
    """File to which events are appended, one JSON object a line."""
    cache: str | None = None
    """Writable folder for tokenized data and converted models; None: nothing is cached."""
    prompts: tuple[str, ...] = ()
    """Questions answered before and after training, greedily."""
    threads: int | None = Field(default=None, ge=1)


class Config(Part):
    """All of it."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    run: Run
    model: Model
    data: Data
    method: Method
    training: Training
    generation: Generation = Generation()

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True)

    def dump(self) -> dict[str, Any]:
        """The config as plain JSON values, nulls kept."""
        return self.model_dump(mode="json", by_alias=True)

    def write(self, path: Path) -> None:
        """Writes the config; the file is complete or absent."""
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(json.dumps(self.dump(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Config:
        """Reads a config; pydantic's ValidationError names every field that is wrong."""
        return cls.model_validate_json(path.read_bytes())
