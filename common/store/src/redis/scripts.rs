//! The Lua scripts, each with the common prelude.

use ::redis::Script;

const PRELUDE: &str = include_str!("lua/prelude.lua");

macro_rules! scripts {
    ($($name:ident),+) => {
        pub(super) struct Scripts {
            $(pub(super) $name: Script,)+
        }

        impl Scripts {
            pub(super) fn new() -> Scripts {
                Scripts {
                    $($name: Script::new(&format!(
                        "{PRELUDE}\n{}",
                        include_str!(concat!("lua/", stringify!($name), ".lua"))
                    )),)+
                }
            }
        }
    };
}

scripts!(
    acquire_lease,
    acquire_rate,
    add_traffic,
    add_usage,
    append_segment,
    block_until,
    cache_tags,
    cached_tags,
    cancel_batch,
    change_state,
    claim_concurrency,
    claim_task,
    complete_plan,
    create_batch,
    finish_task,
    forget_blob,
    forget_provenance,
    forget_tags,
    add_pushes,
    mark_published,
    postpone_pushes,
    reclaim,
    record_provenance,
    record_quota,
    record_tag,
    release_lease,
    remove_batch,
    remove_pushes,
    renew_task,
    requeue_failed,
    reschedule_task,
    set_note,
    update_provenance
);
