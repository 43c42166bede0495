"""Every module has a test file of its name, or a test in another file that is listed here."""

import ast
from pathlib import Path

import pytest

import llm

SOURCE, TESTS = Path(llm.__file__).parent, Path(__file__).parent

# Modules without a test file of their own: the test that fails first if they are wrong.
OWNERS = {
    # The chosen layers only show in the adapted model.
    "adapters/lora_linear.py": "adapters/test_lora.py::test_each_layer_computes_the_equation",
    "adapters/lora_matrix.py": "adapters/test_lora.py::test_matrices_of_cells_have_no_dropout",
    "adapters/lora_stack.py": "adapters/test_lora.py::test_each_expert_has_an_update_of_its_own",
    "adapters/low_rank.py": "adapters/test_lora.py::test_update_is_scaled_by_alpha_over_rank",
    "adapters/targets.py": "adapters/test_lora.py::test_patterns_select_layers",
    # Callbacks that act on a whole run.
    "callbacks/base.py": (
        "training/test_lifecycle.py"
        "::test_a_crash_inside_an_accumulation_resumes_to_the_bit_with_muon_bf16_and_a_worker"
    ),
    "callbacks/early_stopping.py": (
        "training/test_lifecycle.py::test_early_stopping_waits_for_its_patience"
    ),
    "callbacks/progress.py": (
        "training/test_lifecycle.py::test_progress_line_shows_the_metrics_of_its_step"
    ),
    # Checksums are those of a file or a folder.
    "checkpoints/checksums.py": (
        "checkpoints/test_checkpoint_file.py::test_flipped_bit_is_detected_at_any_position"
    ),
    # The parts of the table that a comparison prints.
    "comparison/notes.py": (
        "comparison/test_table.py::test_unequal_budgets_and_seeds_are_ranked_with_a_note"
    ),
    "comparison/rows.py": (
        "comparison/test_table.py::test_a_row_is_a_recipe_and_its_seeds_are_repetitions"
    ),
    # The steps of composing and checking, and their results.
    "config/base.py": (
        "launch/test_start.py::test_a_run_and_a_command_that_reads_it_compose_check_and_build_once"
    ),
    "config/command_info.py": "test_main.py::test_help_lists_every_command_with_an_example",
    "config/command_line.py": "test_main.py::test_flags_may_be_anywhere",
    "config/composed.py": "config/test_check.py::test_trust_itself_is_checked",
    "config/deferred.py": (
        "config/test_check.py::test_required_key_must_be_set_unless_it_is_filled_in_later"
    ),
    "config/errors.py": "test_main.py::test_unknown_command_gets_the_nearest_name",
    "config/explanation.py": "config/test_composition.py::test_override_that_does_not_compose_is_explained",
    "config/hydra_section.py": (
        "config/test_loader.py::test_forbidden_hydra_keys_on_the_command_line_are_refused"
    ),
    "config/inspection.py": "test_main.py::test_help_of_a_command_lists_groups_and_an_example",
    "config/plain.py": "config/test_build.py::test_nested_nodes_are_built_first_and_values_arrive_plain",
    "config/reading.py": "test_files.py::test_pipe_is_refused_without_waiting",
    "config/requirements.py": "test_main.py::test_rules_across_sections_are_checked_on_the_command_line",
    "config/resolvers.py": ("config/test_loader.py::test_lookups_are_allowed_on_the_command_line"),
    "config/rules.py": "config/test_check.py::test_invalid_name_path_or_number_is_reported_in_one_line",
    "config/run_name.py": "test_runs.py::test_a_name_is_the_experiment_and_the_overrides_in_order",
    "config/walk.py": "config/test_check.py::test_all_problems_are_reported_at_once",
    # Shared by data modules: tested in each of them.
    "data/base.py": (
        "data/corpora/test_text.py::test_a_loader_resumed_at_any_batch_equals_an_uninterrupted_one"
    ),
    "data/column.py": "commands/test_classify.py::test_texts_are_read_from_rows_of_a_file",
    "data/corpora/base.py": "data/test_split.py::test_split_is_the_same_for_documents_read_in_pieces",
    "data/corpora/corpus.py": "data/corpora/test_text.py::test_any_change_is_tokenized_anew",
    "data/errors.py": "data/corpora/test_text_files.py::test_a_bad_row_is_named_by_file_and_line",
    "data/examples/jinja_worker.py": (
        "data/examples/test_jinja_template.py::test_what_a_template_may_not_do_is_a_line"
    ),
    "data/examples/messages.py": (
        "data/examples/test_shapes.py::test_other_shapes_of_conversations_are_read"
    ),
    "data/optional_library.py": (
        "data/corpora/test_preprocessing.py::test_a_missing_library_is_named_with_its_installation"
    ),
    "data/paths.py": "data/corpora/test_text_files.py::test_patterns_and_lists_name_each_file_once",
    # Parts of commands.
    "evaluation/scoring.py": (
        "commands/test_evaluate.py::test_a_judge_scores_answers_and_compares_runs"
    ),
    "generation/generation_settings.py": (
        "generation/test_text_generation.py::test_a_stop_string_cuts_the_text_and_ends_the_row"
    ),
    "generation/prompts.py": (
        "commands/test_generate.py::test_file_of_prompts_is_continued_as_one_batch"
    ),
    # How jobs are started: tested with processes.
    "launch/hydra_launch.py": (
        "launch/test_launchers.py::test_search_writes_its_folder_into_output_dir"
    ),
    "launch/shutdown.py": (
        "launch/test_sweep_runner.py::test_ctrl_c_lets_the_job_save_and_ends_the_sweep"
    ),
    "launch/sweep_job.py": "launch/test_sweep_runner.py::test_two_launchers_do_not_run_one_job",
    "loggers/wandb_retry.py": (
        "loggers/test_wandb.py::test_killed_wandb_process_gives_a_warning_and_the_run_continues"
    ),
    "models/errors.py": "models/test_gpt.py::test_errors_name_the_value_and_a_remedy",
    "network.py": "data/test_download.py::test_a_slow_download_may_take_several_periods",
    "nn/context.py": "models/test_gpt.py::test_padding_changes_nothing",
    "nn/ignore_index.py": (
        "data/examples/test_instruction.py::test_targets_are_the_tokens_one_place_further_on"
    ),
    # How a strategy changes a model: tested on ranks.
    "nn/layer_state.py": (
        "nn/test_kv_cache.py::test_a_cache_is_cut_back_as_far_as_all_its_layers_can_be"
    ),
    "nn/masking_kernel.py": "nn/test_flex_attention.py::test_layers_of_a_kind_share_a_mask",
    "nn/memory_mixer.py": (
        "nn/test_recurrent_mixer.py::test_state_does_not_grow_and_is_at_least_float32"
    ),
    "nn/recurrent_cell.py": "nn/test_lstm.py::test_layer_equals_that_of_torch",
    "nn/rms_norm_kernel.py": ("nn/test_norms.py::test_rms_gradient_equals_finite_differences"),
    "nn/token_mixer.py": "nn/test_stack.py::test_each_kind_has_its_own_mask_position_and_parts",
    "parallel/lora_tensor_parallel.py": (
        "parallel/test_tensor_parallel.py::test_adapters_are_divided_like_their_layers"
    ),
    "parallel/pipeline_strategy.py": (
        "parallel/test_pipeline.py::test_two_and_four_stages_learn_as_one_device"
    ),
    "parallel/portable_checkpoints.py": (
        "parallel/test_mesh_strategy.py"
        "::test_run_resumes_under_fsdp_one_device_and_tensor_parallelism"
    ),
    "sweeps.py": "launch/test_sweep_runner.py::test_a_sweep_may_be_moved_with_its_runs",
    # Shared by tasks: tested in a run of one of them.
    "tasks/averaged_task.py": "tasks/test_reward.py::test_reward_model_resumes_to_the_bit",
    "tasks/base.py": "training/test_lifecycle.py::test_accumulation_changes_nothing_but_the_memory",
    "tasks/non_finite.py": (
        "training/test_lifecycle.py::test_nan_stops_the_run_and_keeps_the_checkpoints"
    ),
    "terminal/announce.py": (
        "training/test_lifecycle.py::test_output_without_a_terminal_is_lines_with_metrics"
    ),
    "terminal/streams.py": (
        "commands/test_chat.py::test_ctrl_c_stops_the_response_and_the_next_message_gets_one"
    ),
    "tokenizers/huggingface.py": "tokenizers/test_base.py::test_round_trip",
    # The phases of a run: tested in runs.
    "training/config_rules.py": (
        "config/test_ranges.py::test_a_project_has_a_name_that_is_neither_empty_nor_too_long"
    ),
    "training/forecast.py": "training/test_dry_run.py::test_each_point_is_a_row",
    "training/lightning_trainer.py": (
        "training/test_lifecycle.py::test_resume_from_any_step_equals_the_uninterrupted_run"
    ),
    "training/next_commands.py": (
        "training/test_lifecycle.py::test_interrupted_rerun_resumes_with_the_printed_command"
    ),
    "training/prepared_run.py": "training/test_lifecycle.py::test_a_run_directory_holds_everything",
    "training/recording.py": (
        "training/test_interruption.py::test_a_signal_before_the_first_step_is_recorded"
    ),
    "training/setup.py": (
        "training/test_lifecycle.py::test_a_vocabulary_smaller_than_the_tokenizers_is_named"
    ),
    "training/summary.py": (
        "training/test_lifecycle.py::test_strategy_with_one_device_is_reported"
    ),
    "training/training_config.py": ("training/test_resumption.py::test_other_changes_are_refused"),
    # Weights of other libraries, compared with these libraries.
    "weights/base.py": "weights/test_run.py::test_model_and_tokenizer_equal_the_saved_ones",
    "weights/config_types.py": (
        "weights/test_huggingface.py::test_unreadable_folders_are_reported_in_one_line"
    ),
    "weights/gated_relu.py": (
        "weights/test_folder_export.py::test_parts_that_a_family_writes_in_another_way_are_exported"
    ),
    "weights/gemma2.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/gemma3.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/gguf_families.py": (
        "weights/test_gguf.py::test_what_llama_cpp_computes_otherwise_is_refused_by_name"
    ),
    "weights/gguf_library.py": "commands/test_export.py::test_a_missing_library_is_named",
    "weights/gguf_tensors.py": "weights/test_gguf.py::test_exported_model_is_imported_unchanged",
    "weights/gguf_unread.py": (
        "weights/test_gguf.py::test_values_that_would_change_the_result_are_refused_by_name"
    ),
    "weights/piece_rules.py": (
        "weights/test_gguf_tokenizer.py::test_rule_is_recognized_and_the_tokens_are_equal"
    ),
    "weights/gpt2.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/gpt_neox.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/llama.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/mamba2.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/mistral.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/mixtral.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/model_comparison.py": (
        "weights/test_families.py::test_a_part_without_counterpart_is_named"
    ),
    "weights/model_parts.py": (
        "weights/test_folder_export.py::test_exported_model_is_the_same_for_transformers_and_when_imported"
    ),
    "weights/olmo2.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/olmo3.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/qwen2.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/qwen3.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/qwen3_moe.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/qwen3_next.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/rotary_settings.py": (
        "weights/test_huggingface.py::test_files_of_older_libraries_are_read"
    ),
    "weights/smollm3.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/two_rotations.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/layer_windows.py": "weights/test_huggingface.py::test_logits_are_equal",
    "weights/model_setup.py": "training/test_finetuning.py::test_a_finetune_resumes_to_the_bit",
}


def modules() -> list[str]:
    """Return the path of every module in the package."""
    found = (path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
    return sorted(path.as_posix() for path in found if path.name != "__init__.py")


def has_mirror(module: str) -> bool:
    """Return whether tests/ has a file with this module's name in the folder of its package."""
    path = Path(module)
    return (TESTS / path.parent / f"test_{path.stem.strip('_')}.py").is_file()


def test_every_module_has_a_test_of_its_name_or_an_owner():
    without = [module for module in modules() if not has_mirror(module) and module not in OWNERS]
    assert without == [], "write tests/PACKAGE/test_MODULE.py, or name the test that covers it"


def test_owners_are_of_existing_modules_without_a_test_file():
    assert [m for m in OWNERS if m not in modules()] == []
    assert [m for m in OWNERS if has_mirror(m)] == []


@pytest.mark.parametrize("owner", sorted(set(OWNERS.values())))
def test_every_owner_is_an_existing_test(owner):
    file, _, name = owner.partition("::")
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
