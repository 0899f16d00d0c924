"""Tests that run only weekly: long tests that add further cases to what quicker tests cover in every CI run.

`.ci/run`, which must finish within 25 minutes on two cores, skips them, and `.ci/weekly` runs them. Each test is listed
under its file and function. An empty tuple stands for all cases of the test; otherwise, the tuple names the cases.
"""

WEEKLY: dict[str, dict[str, tuple[str, ...]]] = {
    "docs/test_whole_way.py": {
        "test_sweep_train_go_on_compare_and_export": (),
    },
    "runs/test_following.py": {
        "test_seeds_that_stop_resume_bit_for_bit_compiled_and_on_the_host": (),
    },
    "engines/test_trials.py": {
        "test_trials_in_one_program_are_bit_for_bit_those_alone": ("ppo",),
    },
    "learning/test_natural.py": {
        "test_a_seed_that_was_stopped_and_resumed_alone_is_that_seed_among_others": (),
    },
    "runs/test_seeds.py": {
        "test_a_seed_of_full_size_is_that_seed_however_many_devices_share_the_work": ("3",),
        "test_the_best_agent_of_a_seed_does_not_depend_on_the_others": (),
        "test_a_seed_alone_is_that_seed_among_others": ("host episodes", "compiled episodes", "host segments"),
        "test_seeds_at_once_are_seeds_one_after_another": (),
        "test_the_same_seeds_give_the_same_run": ("compiled episodes",),
        "test_different_seeds_differ": ("host episodes", "compiled episodes"),
    },
    "runs/test_resume.py": {
        "test_stopped_and_resumed_is_uninterrupted": (
            "host episodes",
            "compiled episodes",
            "compiled split",
            "compiled segments",
        ),
        "test_stopped_before_the_first_iteration": ("host segments", "compiled episodes"),
        "test_an_environment_that_does_not_repeat_itself_is_named": (),
        "test_a_run_killed_before_its_first_checkpoint_is_not_lost": (),
    },
    "engines/test_transport.py": {
        "test_a_lost_worker_and_a_grown_cluster_change_no_number": (),
        "test_other_processors_are_recorded_also_on_resume": (),
    },
    "diagnosis/test_probe.py": {
        "test_an_action_of_several_parts_is_learned_and_a_forgotten_part_is_not": (),
        "test_memory_images_dictionaries_and_an_asymmetric_critic_are_solved": (),
        "test_images_of_other_rows_and_a_part_that_is_lost_fail_where_they_belong": (),
        "test_a_wrong_sign_fails_where_actions_matter": (),
        "test_what_is_carried_over_from_the_next_episode_fails_at_truncation_alone": ("broken1",),
        "test_a_limit_taken_for_death_fails_at_truncation_alone": (),
        "test_a_policy_that_sees_too_much_and_a_critic_that_sees_too_little_fail_at_asymmetric": (),
        "test_a_memory_that_no_episode_restarts_fails_at_memory": (),
    },
    "runs/test_structured_observations.py": {
        "test_it_is_judged_recorded_learned_from_loaded_and_shown": ("host less",),
        "test_each_seed_is_as_if_alone": ("host pictures", "host less"),
        "test_a_run_stopped_and_resumed_is_uninterrupted": ("compiled pictures", "host workers"),
        "test_a_policy_does_without_what_only_the_critic_reads": (),
    },
    "runs/test_bonus_runs.py": {
        "test_a_seed_has_the_same_bits_alone_and_among_others": ("none",),
        "test_only_the_first_states_of_episodes_are_visits_beside_the_steps": ("FrozenLake-v1",),
        "test_a_seed_is_as_if_alone": (),
        "test_stopped_and_resumed_is_uninterrupted": ("host",),
    },
    "runs/test_groups.py": {
        "test_a_run_with_a_reference_is_resumed_without_it": (),
        "test_host_groups_train_and_resume": (),
    },
    "runs/test_lineage.py": {
        "test_networks_of_every_kind_are_taken_over": ("images", "a model of one's own", "a memory"),
        "test_a_clone_goes_on_in_another_environment_with_the_same_spaces": (),
    },
    "models/test_model.py": {
        "test_an_own_model_stopped_and_resumed_is_uninterrupted": ("host sliced",),
        "test_the_gradient_flows_through_stretches_of_l_steps_and_no_further": ("lru", "SharedTrunk"),
        "test_an_own_model_is_loaded_evaluated_and_recorded": ("host",),
        "test_whole_episodes_teach_a_model_with_memory": ("CartPole-v1", "jax:CartPole-v1"),
        "test_recorded_episodes_teach_a_model_with_memory": (),
        "test_the_ratio_is_one_before_the_policy_moves": ("host sliced", "compiled"),
    },
    "runs/test_hybrid_actions.py": {
        "test_a_run_stopped_and_resumed_is_uninterrupted": (),
        "test_slices_of_environments_take_the_same_actions": (),
        "test_it_is_judged_recorded_learned_from_and_shown": ("compiled-clone",),
    },
    "engines/test_masks.py": {
        "test_workers_slices_and_seeds_change_no_bit": (),
        "test_no_forbidden_action_is_taken_and_a_run_goes_through_all_its_life": ("test_masks:halves",),
        "test_a_resumed_run_is_the_uninterrupted_one": ("ppo-user_environments:Fenced", "reward_to_go-jax:probe/mask"),
    },
    "engines/test_slices.py": {
        "test_the_result_does_not_depend_on_the_slices": ("segments-1-3", "episodes-2-3"),
        "test_the_result_is_the_same_where_the_main_process_steps_a_slice": ("masked-2", "episodes-2"),
        "test_a_fault_beside_the_main_process_is_named": (),
        "test_shared_memory_that_has_no_room_is_not_needed": ("False",),
        "test_a_fault_in_a_slice_is_named_and_loses_nothing": ("raises-the simulator is gone",),
        "test_a_run_is_resumed_in_other_slices": (),
    },
    "engines/test_workers.py": {
        "test_the_result_does_not_depend_on_the_processes": ("episodes", "mujoco"),
        "test_a_fault_in_one_process_is_named_and_loses_nothing": (
            r"raises-simulator is gone \u2014 environment 0 of seed 1, episode 3.*saved",
        ),
        "test_a_run_is_resumed_by_another_number_of_processes": (),
        "test_no_process_outlives_the_run": (),
        "test_the_sums_of_long_products_do_not_depend_on_the_workers": (),
    },
    "engines/test_faults.py": {
        "test_a_diverged_seed_harms_neither_the_others_nor_the_files": ("Pendulum-v1-HostEngine",),
    },
    "cli/test_side_effects.py": {
        "test_a_thread_that_was_left_does_not_keep_the_command": ("0.1-False",),
    },
    "engines/test_closing.py": {
        "test_environments_are_closed_by_a_signal": ("2-seeds", "9-seeds", "15-slices", "9-slices"),
        "test_an_error_in_closing_loses_nothing": ("slices",),
        "test_a_program_of_an_environment_cannot_read_what_is_said_to_a_worker": ("slices",),
        "test_a_run_closes_its_environments": ("slices",),
    },
    "engines/test_border.py": {
        "test_boxes_of_any_shape_and_dtype_train_evaluate_and_resume": ("narrow_doubles", "scalar"),
    },
    "lab/test_lab.py": {
        "test_an_experiment_in_small": ("table1", "reuse", "television", "seeds", "advantages"),
        "test_every_word_is_there_in_both_languages": (
            *("reuse-en", "table1-en", "television-en", "credit-en"),
            *("reuse-zh", "table1-zh", "television-zh", "credit-zh"),
        ),
    },
    "lab/test_ladder.py": {
        "test_a_race_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been": (),
        "test_each_rung_is_an_ordinary_run_with_the_same_seeds_and_budget": (),
    },
    "models/test_encoders.py": {
        "test_bytes_in_portions_are_read_as_xlas_convolutions_read_fractions": ("impala-84-2",),
        "test_convolutions_as_products_are_equinoxs_with_their_gradient": ("65536-11-4-2-0", "0-9-3-1-0", "0-10-3-2-0"),
    },
    "models/test_agent.py": {
        "test_any_number_of_seeds_is_initialised_each_with_its_own_weights": ("32",),
    },
    "environments/test_own_environments.py": {
        "test_every_command_finds_it_by_name": ("catch:Catch",),
        "test_check_and_its_advice_take_the_name": ("catch:Catch",),
        "test_the_ladder_takes_the_name": (),
        "test_another_process_runs_it": (),
        "test_it_learns": (),
    },
    "learning/test_optimisers.py": {
        "test_an_optax_chain_may_count_its_steps_twice": (),
        "test_a_scheduled_epsilon_is_the_one_that_clips": (),
    },
    "models/test_memories.py": {
        "test_the_policy_gradient_through_memory_is_that_of_the_exact_return": ("lstm", "lru"),
    },
    "learning/test_health_of_parts.py": {
        "test_a_fresh_memory_is_neither_dead_nor_saturated": ("lru",),
    },
    "runs/test_gsde.py": {
        "test_it_is_credited_cloned_shown_and_diagnosed": (),
        "test_a_run_stopped_and_resumed_is_uninterrupted": ("host",),
    },
    "engines/test_recorded.py": {
        "test_recorded_and_loaded_equals_the_rollouts": ("CartPole-v1",),
    },
    "engines/test_planted_facts.py": {
        "test_the_value_after_a_last_frame_is_the_last_frames": ("None",),
    },
    "runs/test_export.py": {
        "test_in_onnx_a_policy_is_itself": ("impala",),
    },
    "runs/test_survival.py": {
        "test_a_worker_that_hangs_is_ended_and_its_environment_named": (),
        "test_a_clock_that_jumps_or_stands_still": ("-1000000000.0", "0.0"),
    },
    "lab/test_sweep.py": {
        "test_a_diverged_trial_is_told_and_does_not_win": (),
        "test_equal_trials_of_a_program_without_numbers_are_trained": (),
    },
    "core/test_vtrace.py": {
        "test_a_run_that_acts_for_itself_learns_as_n_step_does": (),
    },
    "runs/test_golden.py": {
        "test_a_run_gives_the_stored_numbers": (
            "compiled discrete reinforce",
            "compiled discrete reward_to_go",
            "compiled discrete reinforce_baseline",
            "compiled discrete actor_critic",
            "compiled discrete a2c",
            "compiled discrete gae",
            "compiled discrete ppo_kl",
            "compiled box ppo_kl_fixed",
            "compiled one-hot ppo",
            "compiled multidiscrete ppo",
            "compiled multibinary gae",
            "compiled wide ppo",
            "host discrete ppo",
            "host discrete reinforce_baseline",
            "host discrete a2c workers",
            "host box ppo",
            "host multidiscrete ppo",
            "host multibinary actor_critic",
            "recorded box clone",
        ),
    },
    "diagnosis/test_doctor_planted.py": {
        "test_planted_faults_are_found_first_and_a_healthy_run_is_let_alone": ("more", "others"),
    },
    "runs/test_foreign_values.py": {
        "test_any_number_in_a_table": tuple(
            f"{number}-{table}.csv"
            for number in ("-1e308", "-inf", "9223372036854775807", "-9223372036854775808", "1.5")
            for table in ("episodes", "evaluation")
        ),
    },
    "learning/test_split.py": {
        "test_a_seed_on_two_devices_is_that_seed_on_one": ("groups",),
    },
}


def is_weekly(file: str, function: str, case: str) -> bool:
    """Return whether a test is listed. `file` is relative to `tests/`; `case` is the text in the test's brackets."""
    cases = WEEKLY.get(file, {}).get(function)
    return cases is not None and (not cases or case in cases)
