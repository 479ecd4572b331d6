//! The same behaviours with a real OpenBao.

use super::*;

struct OpenBao;

impl Made for OpenBao {
    const BY: Product = Product::OpenBao;
}

crate::conformance! {
    ServerBench<OpenBao>;
    what_is_wrapped_unwraps,
    the_profile_of_a_key_is_told,
    a_wrap_names_the_active_version,
    another_instance_unwraps,
    another_context_is_rejected,
    a_tampered_blob_is_rejected,
    a_blob_of_another_key_is_rejected,
    two_keys_have_two_lineages,
    a_version_text_of_another_kind_is_refused_without_a_remote_call,
    a_version_that_never_was_is_unknown,
    a_rotated_key_is_seen,
    the_rotating_part_rotates,
    old_versions_still_open,
    a_recreated_key_is_another_version,
    a_disabled_key_is_denied: "a transit key cannot be disabled, only deleted or taken from a policy",
    a_destroyed_key_is_gone_definitely,
    a_withdrawn_permission_is_denied,
    expired_credentials_are_renewed,
    revoked_credentials_are_unauthenticated,
    the_end_of_the_credentials_is_known,
    a_clock_that_is_off_is_known,
    a_throttled_call_is_throttled,
    a_server_error_is_unavailable,
    a_slow_server_meets_the_deadline,
    a_cut_connection_is_unavailable,
    an_unreachable_server_is_unavailable,
    a_wrong_certificate_is_refused,
    the_key_exchange_offered_first_is_post_quantum,
    a_redirect_is_not_followed,
    a_proxy_is_used_where_it_is_named,
    an_oversized_answer_is_not_read,
    garbage_in_an_answer_is_unavailable,
    the_kek_works_again_after_faults,
}
