//! Every table. Each is a test of its own, and so is all of them on one machine, for where it takes long to load the programs.

use crate::case::{Case, run};

macro_rules! tables {
    ($($module:ident { $($test:ident: $rows:ident,)* })*) => {
        const TABLES: &[fn() -> Vec<Case>] = &[$($(crate::$module::$rows,)*)*];

        $(mod $module {
            $(
                #[test]
                fn $test() {
                    crate::case::run(crate::$module::$rows);
                }
            )*
        })*
    };
}

// A sentence that the table shows, and the function of that module with its rows.
tables! {
    choices {
        the_choice_is_the_one_the_host_computes: by_hash,
        by_source_all_connections_of_a_client_meet: by_source,
        a_table_that_lacks_something_refuses: lacking,
        terminating_backends_are_not_in_the_table_and_keep_what_they_have: drained,
        clients_stay_with_their_backend: affinity,
    }
    connections {
        connections_stay_with_their_backend_and_end: lives,
        backends_leave_as_configured: leaving,
        a_live_connection_of_the_same_tuple_is_not_taken_over: same_tuple,
        ports_and_entries_run_out_without_harm_to_what_is_known: exhausted,
    }
    dsr {
        what_is_for_another_node_leaves_with_the_client_and_a_note: sent,
        what_cannot_go_directly_goes_another_way: not_sent,
        what_does_not_fit_with_a_note_is_told: too_long,
        what_another_node_sends_reaches_the_backend_and_is_answered_for_the_frontend: received,
        what_is_said_is_believed_only_as_far_as_it_is_known: refused,
        fragments_options_and_errors_go_along: unusual,
        a_second_opening_is_announced_again: reopened,
        who_has_a_fast_path_is_answered_for_the_frontend_as_well: not_fast,
    }
    fast {
        workloads_of_two_nodes_reach_each_other_past_the_stack: taken,
        what_has_no_way_or_is_unusual_goes_through_the_stack: not_taken,
        what_does_not_fit_is_told_or_fragmented: too_long,
    }
    fragments {
        fragments_follow_the_first_one: followed,
        fragments_without_a_first_one_are_left_to_the_stack: unknown,
    }
    handover {
        resets_of_what_nobody_knows_are_held_back: held,
    }
    headers {
        packets_for_nobody_pass: for_nobody,
        unusual_headers_are_left_to_tc_and_served_there: unusual,
        headers_that_nobody_reads_pass: not_read,
        headers_that_contradict_themselves_are_left_to_the_stack: contradictions,
    }
    hops {
        forwarding_takes_one_hop_and_handing_over_none: hop_limits,
        xdp_sends_only_where_it_arrives: by_xdp,
        the_kernel_is_asked_for_next_hops_that_are_not_known: by_kernel,
        packets_that_are_too_long_for_the_next_hop_are_left_to_the_kernel: narrow,
    }
    icmp {
        errors_about_masqueraded_packets_come_to_the_workload: masqueraded,
        errors_about_service_packets_come_to_the_client_and_to_the_backend: services,
        errors_about_packets_of_workloads_to_services_come_to_the_workload: workloads,
        errors_of_every_type_and_with_every_header_are_translated: forms,
        errors_about_nothing_of_ours_pass: not_ours,
    }
    masquerade {
        workloads_that_talk_to_the_world_get_the_address_of_the_node: translated,
        what_is_excluded_keeps_its_source: excluded,
        answers_never_start_a_masquerade: answers,
        a_connection_ends_when_both_ends_have_said_goodbye: goodbyes,
        masquerade_runs_out_without_harm_to_what_is_known: exhausted,
        sums_of_udp_keep_their_meaning: sums,
    }
    ranges {
        only_clients_inside_of_a_range_begin_connections: rows,
    }
    services {
        services_are_served_to_the_outside: from_outside,
        services_are_served_to_workloads: from_workloads,
        a_workload_reaches_itself: hairpin,
        what_is_no_service_of_that_scope_is_missed: misses,
        a_service_without_backends_refuses: without_backends,
        a_node_without_an_address_of_the_family_cannot_serve_remote_backends: without_source,
        a_connection_that_is_closed_is_answered_until_its_end: closing,
    }
    tunnels {
        what_is_for_this_node_is_taken_out_of_frames: opened,
        what_goes_on_is_left_to_the_device_if_there_is_one: transit,
        frames_of_strangers_and_with_our_own_addresses_are_refused: refused,
        what_is_no_frame_of_ours_passes: not_ours,
        packets_of_services_go_to_the_tunnel: services,
    }
}

fn all() -> Vec<Case> {
    TABLES.iter().flat_map(|rows| rows()).collect()
}

#[test]
#[ignore = "for make kernels"]
fn every_row_on_one_machine() {
    run(all);
}

#[test]
fn the_tables_have_two_hundred_cases_and_more() {
    let cases = all().len();
    println!("{cases} cases");
    assert!(cases >= 200, "{cases}");
}
