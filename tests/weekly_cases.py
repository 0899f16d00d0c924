"""Tests that run weekly: long ones, each a further case of what quicker ones show in every run of the tests.

`.ci/run` has to stay below 25 minutes on two cores. A test is listed by its file, its function and, if only some of its
cases are meant, their names; `.ci/weekly` runs them all.
"""

WEEKLY: dict[str, dict[str, tuple[str, ...]]] = {
    "docs/test_whole_way.py": {"test_sweep_train_go_on_compare_and_export": ()},
    "runs/test_following.py": {"test_seeds_that_stop_resume_bit_for_bit_compiled_and_on_the_host": ()},
    "engines/test_trials.py": {"test_trials_in_one_program_are_bit_for_bit_those_alone": ("ppo",)},
    "learning/test_natural.py": {"test_a_seed_that_was_stopped_and_resumed_alone_is_that_seed_among_others": ()},
    "runs/test_seeds.py": {
        "test_a_seed_of_full_size_is_that_seed_however_many_devices_share_the_work": ("3",),
        "test_the_best_agent_of_a_seed_does_not_depend_on_the_others": (),
        "test_a_seed_alone_is_that_seed_among_others": ("host episodes", "compiled episodes"),
        "test_seeds_at_once_are_seeds_one_after_another": ("jax:CartPole-v1-reinforce-settings0",),
    },
    "runs/test_resume.py": {
        "test_stopped_and_resumed_is_uninterrupted": ("host episodes", "compiled episodes"),
        "test_stopped_before_the_first_iteration": ("host segments",),
    },
    "engines/test_transport.py": {"test_a_lost_worker_and_a_grown_cluster_change_no_number": ()},
    "diagnosis/test_probe.py": {
        "test_an_action_of_several_parts_is_learned_and_a_forgotten_part_is_not": (),
        "test_memory_images_dictionaries_and_an_asymmetric_critic_are_solved": (),
        "test_images_of_other_rows_and_a_part_that_is_lost_fail_where_they_belong": (),
        "test_a_wrong_sign_fails_where_actions_matter": (),
        "test_what_is_carried_over_from_the_next_episode_fails_at_truncation_alone": ("broken1",),
        "test_a_limit_taken_for_death_fails_at_truncation_alone": (),
    },
    "runs/test_structured_observations.py": {
        "test_it_is_judged_recorded_learned_from_loaded_and_shown": ("host less",),
        "test_each_seed_is_as_if_alone": ("host pictures", "host less"),
        "test_a_run_stopped_and_resumed_is_uninterrupted": ("compiled pictures",),
    },
    "runs/test_bonus_runs.py": {
        "test_a_seed_is_as_if_alone": (),
        "test_stopped_and_resumed_is_uninterrupted": ("host",),
    },
    "runs/test_groups.py": {"test_a_run_with_a_reference_is_resumed_without_it": ()},
    "runs/test_lineage.py": {
        "test_networks_of_every_kind_are_taken_over": ("images", "a model of one's own", "a memory"),
        "test_a_clone_goes_on_in_another_environment_with_the_same_spaces": (),
    },
    "models/test_model.py": {
        "test_an_own_model_stopped_and_resumed_is_uninterrupted": ("host sliced",),
        "test_the_gradient_flows_through_stretches_of_l_steps_and_no_further": ("lru", "SharedTrunk"),
        "test_an_own_model_is_loaded_evaluated_and_recorded": ("host",),
        "test_whole_episodes_teach_a_model_with_memory": ("CartPole-v1",),
        "test_recorded_episodes_teach_a_model_with_memory": (),
    },
    "runs/test_hybrid_actions.py": {"test_a_run_stopped_and_resumed_is_uninterrupted": ("host",)},
    "engines/test_masks.py": {
        "test_workers_slices_and_seeds_change_no_bit": (),
        "test_no_forbidden_action_is_taken_and_a_run_goes_through_all_its_life": ("test_masks:halves",),
        "test_a_resumed_run_is_the_uninterrupted_one": ("ppo-user_environments:Fenced",),
    },
    "engines/test_slices.py": {
        "test_the_result_does_not_depend_on_the_slices": ("segments-1-3", "episodes-2-3"),
        "test_a_fault_in_a_slice_is_named_and_loses_nothing": ("raises-the simulator is gone",),
        "test_a_run_is_resumed_in_other_slices": (),
    },
    "engines/test_workers.py": {"test_the_result_does_not_depend_on_the_processes": ("episodes", "mujoco")},
    "engines/test_closing.py": {"test_environments_are_closed_by_a_signal": ("2-seeds", "9-seeds", "15-slices")},
    "engines/test_border.py": {
        "test_boxes_of_any_shape_and_dtype_train_evaluate_and_resume": ("narrow_doubles", "scalar"),
    },
    "lab/test_lab.py": {"test_an_experiment_in_small": ("table1", "reuse")},
    "lab/test_ladder.py": {"test_a_race_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been": ()},
    "models/test_agent.py": {"test_any_number_of_seeds_is_initialised_each_with_its_own_weights": ("32",)},
}


def is_weekly(file: str, function: str, case: str) -> bool:
    """Whether a test of a file, relative to `tests/`, is listed; `case` is what stands in its brackets."""
    cases = WEEKLY.get(file, {}).get(function)
    return cases is not None and (not cases or case in cases)
