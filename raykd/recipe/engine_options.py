"""What may stand in `sampling.options` and `engine.arguments`, by engine. Nothing here needs vLLM or transformers.

A test compares the names with those of the installed versions, which the project pins.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

# fields of vllm.SamplingParams
VLLM_OPTIONS = frozenset(
    """
    n presence_penalty frequency_penalty repetition_penalty temperature watermarking top_p top_k min_p seed stop
    stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs prompt_logprob_token_ids
    prompt_logprob_start logprob_token_ids flat_logprobs detokenize skip_special_tokens spaces_between_special_tokens
    include_stop_str_in_output output_kind stream_interval skip_clone output_text_buffer_length structured_outputs
    logit_bias allowed_token_ids extra_args bad_words skip_reading_prefix_cache thinking_token_budget
    repetition_detection routed_experts_prompt_start trace_decode_token_ids
    """.split()
)
# fields of vllm.EngineArgs
VLLM_ARGUMENTS = frozenset(
    """
    model enable_return_routed_experts return_sampling_mask model_weights served_model_name tokenizer hf_config_path
    runner convert skip_tokenizer_init enable_prompt_embeds tokenizer_mode trust_remote_code allowed_local_media_path
    allowed_media_domains download_dir safetensors_load_strategy safetensors_prefetch_num_threads
    safetensors_prefetch_block_size load_format config_format dtype kv_cache_dtype seed max_model_len
    cudagraph_capture_sizes max_cudagraph_capture_size ir_op_priority distributed_executor_backend
    pipeline_parallel_size master_addr master_port nnodes node_rank distributed_timeout_seconds
    cpu_distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus device_ids tensor_parallel_size
    prefill_context_parallel_size decode_context_parallel_size dcp_comm_backend dcp_q_replicate
    dcp_kv_cache_interleave_size cp_kv_cache_interleave_size data_parallel_size data_parallel_rank
    data_parallel_start_rank data_parallel_size_local data_parallel_address data_parallel_rpc_port
    data_parallel_hybrid_lb data_parallel_external_lb data_parallel_multi_port_external_lb data_parallel_backend
    enable_hc_sp enable_expert_parallel enable_batch_sharded_sampling enable_ep_weight_filter moe_backend
    linear_backend sparse_indexer_topk_backend all2all_backend enable_elastic_ep elastic_ep_max_dp_size enable_dbo
    ubatch_size dbo_decode_token_threshold dp_sync_interval dbo_prefill_token_threshold
    disable_nccl_for_dp_synchronization eplb_config enable_eplb expert_placement_strategy max_parallel_loading_workers
    block_size enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval disable_sliding_window
    disable_cascade_attn offload_backend cpu_offload_gb cpu_offload_params offload_group_size offload_num_in_group
    offload_prefetch_step offload_params gpu_memory_utilization kv_cache_memory_bytes max_num_batched_tokens
    max_num_scheduled_tokens long_prefill_token_threshold long_prefill_token_threshold_adaptive max_num_seqs
    max_num_active_seqs max_num_queued_reqs max_num_queued_tokens max_logprobs logprobs_mode use_fp64_gumbel
    enable_trace_replay disable_log_stats aggregate_engine_logging revision code_revision hf_token hf_overrides
    model_class_overrides tokenizer_revision quantization quantization_config allow_deprecated_quantization
    enforce_eager disable_custom_all_reduce enable_shm_tensor_arena language_model_only limit_mm_per_prompt
    enable_mm_embeds interleave_mm_strings media_io_kwargs mm_processor_kwargs mm_processor_cache_gb
    mm_processor_cache_type mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode
    mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
    mm_encoder_fp8_scale_save_margin io_processor_plugin renderer_num_workers skip_mm_profiling video_pruning_rate
    video_pruning_method mm_tensor_ipc mm_processor_device mm_ipc_gpu_memory_gb mm_device_do_normalize enable_lora
    max_loras max_lora_rank default_mm_loras fully_sharded_loras max_cpu_loras lora_dtype lora_target_modules
    enable_tower_connector_lora specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras
    max_lora_cls_labels ray_workers_use_nsight num_gpu_blocks_override model_loader_extra_config ignore_patterns
    enable_chunked_prefill disable_chunked_mm_input scheduler_reserve_full_isl prefill_schedule_interval watermark
    disable_hybrid_kv_cache_manager structured_outputs_config aux_output_config reasoning_parser
    reasoning_parser_plugin speculative_config spec_method spec_model spec_tokens watermark_config diffusion_config
    show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces per_request_spec_decode_metrics
    kv_cache_metrics kv_cache_metrics_sample custom_histogram_buckets cudagraph_metrics enable_layerwise_nvtx_tracing
    enable_mfu_metrics enable_logging_iteration_details jit_monitor_mode jit_monitor_verbose enable_mm_processor_stats
    scheduling_policy scheduler_cls pooler_config compilation_config attention_config engram_config mamba_config
    kernel_config enable_flashinfer_autotune worker_cls worker_extension_cls profiler_config logging_config log_level
    log_config_file kv_transfer_config kv_events_config ec_transfer_config ec_manager_config reasoning_config
    generation_config enable_sleep_mode sleep_mode_offload_cudagraph sleep_preserve_parameter_names
    enable_cumem_allocator enable_nccl_comm_suspend override_generation_config model_impl attention_backend
    kv_cache_dtype_skip_layers mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size prefix_match_unit
    mamba_cache_mode enable_mamba_shared_prefix_checkpoint replayssm_buffer_len use_replayssm mamba_backend
    mamba_ssu_algorithm enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds additional_config
    use_tqdm_on_load pt_load_map_location logits_processors async_scheduling stream_interval kv_sharing_fast_prefill
    swa_bounded_replay optimization_level performance_mode fault_tolerance_config enable_fault_tolerance
    kv_offloading_size kv_offloading_backend tokens_only shutdown_timeout weight_transfer_config
    fail_on_environ_validation gdn_prefill_backend kda_prefill_backend kda_decode_backend
    """.split()
)
# attributes of transformers.GenerationConfig
TRANSFORMERS_OPTIONS = frozenset(
    """
    max_length max_new_tokens min_length min_new_tokens early_stopping max_time stop_strings do_sample num_beams
    use_mtp use_cache cache_implementation cache_config max_cache_len temperature top_k top_p min_p top_h typical_p
    epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    bad_words_ids renormalize_logits forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias token_healing guidance_scale
    watermarking_config num_return_sequences output_attentions output_hidden_states output_scores output_logits
    return_dict_in_generate pad_token_id bos_token_id eos_token_id encoder_no_repeat_ngram_size decoder_start_token_id
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type compile_config disable_compile continuous_batching_config low_memory
    penalty_alpha dola_layers diversity_penalty num_beam_groups constraints force_words_ids prefill_chunk_size
    transformers_version
    """.split()
)
LONE = "the engine works in batches, and this one serves single prompts"
REMOTE_CODE = "transformers loads code from the hub for it"
NO_OUTPUTS = "the engine reads token ids alone"
# options of GenerationConfig that would undo what the engine does, or that it cannot run
RESERVED = {
    "do_sample": "set temperature beside options",
    "max_new_tokens": "set max_tokens beside options",
    "max_length": "set max_tokens beside options",
    "num_return_sequences": "set n beside options",
    "return_dict_in_generate": NO_OUTPUTS,
    "output_attentions": NO_OUTPUTS,
    "output_hidden_states": NO_OUTPUTS,
    "output_scores": NO_OUTPUTS,
    "output_logits": NO_OUTPUTS,
    "stop_strings": "the engine ends at end tokens alone",
    "max_time": "the engine ends at end tokens alone",
    "token_healing": "the engine gives generate no tokenizer",
    "compile_config": "it is an object, which a recipe cannot hold",
    "prompt_lookup_num_tokens": LONE,
    "assistant_early_exit": LONE,
    "is_assistant": LONE,
    "use_mtp": LONE,
    "penalty_alpha": REMOTE_CODE,
    "dola_layers": REMOTE_CODE,
    "constraints": REMOTE_CODE,
    "force_words_ids": REMOTE_CODE,
    "num_beam_groups": REMOTE_CODE,
    "diversity_penalty": REMOTE_CODE,
}
# options of SamplingParams that the engine sets itself, or that hold an object
VLLM_RESERVED = {
    "logprobs": "the teacher's payload decides it",
    "flat_logprobs": "the engine sets it",
    "output_kind": "the engine sets it",
    "prompt_logprobs": "the engine sets it",
    "seed": "set seeded beside options",
    "structured_outputs": "it is an object, which a recipe cannot hold",
    "repetition_detection": "it is an object, which a recipe cannot hold",
}
# arguments of EngineArgs that the recipe says elsewhere
ARGUMENTS_RESERVED = {"model": "set the section model", "hf_token": "a recipe holds no secrets: set HF_TOKEN"}
ENDPOINT_RESERVED = ("model", "prompt", "messages", "stream")  # fields of a request that the engine sets

Check = Callable[[Any], bool]


def _number(low: float, high: float = float("inf"), above: bool = False) -> tuple[Check, str]:
    """The check of a number, and the words for it. `above`: the lower bound itself is refused."""
    words = f"a number {'above' if above else 'from'} {low:g}" + (f" to {high:g}" if high < float("inf") else "")

    def right(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (low < value if above else low <= value) and value <= high

    return right, words


def _whole(low: int) -> tuple[Check, str]:
    return (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low,
        f"a whole number of {low} or more",
    )


def _list_of(kind: type) -> Check:
    return lambda value: (
        isinstance(value, list)
        and all(isinstance(item, kind) and not isinstance(item, bool) and item != "" for item in value)
    )


YES_OR_NO: tuple[Check, str] = (lambda value: isinstance(value, bool), "true or false")
TOKENS: tuple[Check, str] = (_list_of(int), "a list of token ids")
TEXTS: tuple[Check, str] = (lambda value: _list_of(str)(value) or bool(value and isinstance(value, str)), "texts")
# what a value must be, by option; options that are not in it are passed on unseen
VLLM_VALUES = {
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, above=True),
    "min_p": _number(0, 1),
    "min_tokens": _whole(0),
    "stop": TEXTS,
    "stop_token_ids": TOKENS,
    "allowed_token_ids": TOKENS,
    "bad_words": TEXTS,
    "ignore_eos": YES_OR_NO,
    "detokenize": YES_OR_NO,
    "skip_special_tokens": YES_OR_NO,
    "include_stop_str_in_output": YES_OR_NO,
    "logit_bias": (lambda value: isinstance(value, dict), "a mapping of token ids to numbers"),
}
TRANSFORMERS_VALUES = {
    "num_beams": _whole(1),
    "min_length": _whole(0),
    "min_new_tokens": _whole(0),
    "no_repeat_ngram_size": _whole(0),
    "encoder_no_repeat_ngram_size": _whole(0),
    "length_penalty": _number(-100, 100),
    "repetition_penalty": _number(0, above=True),
    "encoder_repetition_penalty": _number(0, above=True),
    "min_p": _number(0, 1),
    "top_h": _number(0, 1, above=True),
    "typical_p": _number(0, 1, above=True),
    "epsilon_cutoff": _number(0, 1),
    "eta_cutoff": _number(0, 1),
    "guidance_scale": _number(0),
    "suppress_tokens": TOKENS,
    "begin_suppress_tokens": TOKENS,
    "bad_words_ids": (
        lambda value: isinstance(value, list) and bool(value) and all(_list_of(int)(ids) and ids for ids in value),
        "a list of lists of token ids",
    ),
    "early_stopping": (lambda value: isinstance(value, bool) or value == "never", "true, false or never"),
    "renormalize_logits": YES_OR_NO,
    "remove_invalid_values": YES_OR_NO,
    "use_cache": YES_OR_NO,
}
ARGUMENT_VALUES = {
    "tensor_parallel_size": _whole(1),
    "pipeline_parallel_size": _whole(1),
    "data_parallel_size": _whole(1),
    "max_num_seqs": _whole(1),
    "max_num_batched_tokens": _whole(1),
    "max_model_len": _whole(1),
    "max_logprobs": _whole(-1),
    "gpu_memory_utilization": _number(0, 1, above=True),
    "enforce_eager": YES_OR_NO,
    "enable_prefix_caching": YES_OR_NO,
    "trust_remote_code": YES_OR_NO,
    "dtype": (
        lambda value: value in ("auto", "half", "float16", "bfloat16", "float", "float32"),
        "one of auto, half, float16, bfloat16, float, float32",
    ),
}


class _Options(NamedTuple):
    """The options of a library: their names, those that a recipe may not set, and what their values must be."""

    library: str
    known: frozenset[str]
    reserved: dict[str, str]  # name -> what to do instead
    values: dict[str, tuple[Check, str]]
    others: frozenset[str]  # names of another library's options


VLLM = _Options("vLLM", VLLM_OPTIONS, VLLM_RESERVED, VLLM_VALUES, TRANSFORMERS_OPTIONS)
TRANSFORMERS = _Options("transformers", TRANSFORMERS_OPTIONS, RESERVED, TRANSFORMERS_VALUES, VLLM_OPTIONS)
ARGUMENTS = _Options("vLLM", VLLM_ARGUMENTS, ARGUMENTS_RESERVED, ARGUMENT_VALUES, frozenset())


def require_options(engine: str, options: dict[str, Any]) -> None:
    """Raise ValueError for `sampling.options` that an engine of this kind does not know, or cannot do."""
    if engine == "vllm":
        _require("options", options, VLLM)
    elif engine == "transformers":
        _require("options", options, TRANSFORMERS)
    elif engine == "endpoint":
        for name in options:
            if name in ENDPOINT_RESERVED:
                raise ValueError(f"options.{name}: expected nothing, the engine sets it")


def require_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError for `engine.arguments` that vLLM does not know, or that the recipe says elsewhere."""
    _require("arguments", arguments, ARGUMENTS)


def _require(field: str, options: dict[str, Any], rules: _Options) -> None:
    for name, value in options.items():
        if name in rules.reserved:
            raise ValueError(f"{field}.{name}: not here; {rules.reserved[name]}")
        if name not in rules.known:
            raise ValueError(f"{field}.{name}: {rules.library} has no such option; {_hint(name, rules)}")
        right, words = rules.values.get(name, (None, ""))
        if right and not right(value):
            raise ValueError(f"{field}.{name}: expected {words}, found {value!r:.60}")


def _hint(name: str, rules: _Options) -> str:
    """The option that was probably meant."""
    if name in rules.others:
        return "it is one of the other engine's"
    near = difflib.get_close_matches(name, sorted(rules.known - set(rules.reserved)), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"see the documentation of {rules.library}"
