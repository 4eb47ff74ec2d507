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
    acquire,
    append,
    blobs_forget,
    cache_forget,
    cache_known,
    cache_learn,
    cancel,
    change,
    claim,
    create,
    finish,
    hold_off,
    note,
    origin_change,
    origin_forget,
    origin_note,
    pace,
    published,
    quota,
    record_tag,
    release,
    remove,
    renew,
    requeue,
    retry,
    seal,
    spend,
    start,
    sweep,
    traffic
);
