//! A batch's row.

use rusqlite::{Connection, OptionalExtension};

use imgsync_model::batch::{BatchId, TaskState};
use imgsync_oci::error::{Error, ErrorKind};

use super::super::error::{SqliteError, corrupt_store};
use crate::BatchState;

/// The columns of a batch's row that moving tasks needs.
#[derive(Clone)]
pub(in super::super) struct BatchRow {
    pub(super) row_id: i64,
    pub(super) state: BatchState,
    pub(super) run: u32,
    pub(super) last_token: i64,
    pub(super) is_plan_complete: bool,
    pub(super) is_ended: bool,
    pub(super) total: u32,
    /// Creation time.
    pub(super) created: i64,
    /// Width of a time bucket in milliseconds.
    pub(super) width: i64,
    /// Task counts by [`TaskState::code`].
    pub(super) counts_by_state: [i64; 8],
}

impl BatchRow {
    pub(super) fn find(connection: &Connection, id: BatchId) -> Result<Option<BatchRow>, SqliteError> {
        let sql = "SELECT row_id, state, run, last_token, planned_at IS NOT NULL, ended_at IS NOT NULL, total,
                          new_tasks, queued_tasks, running_tasks, retry_tasks,
                          copied_tasks, unchanged_tasks, failed_tasks, cancelled_tasks, created_at, bucket_width
                   FROM batch WHERE id = ?1";
        let row = connection
            .prepare_cached(sql)?
            .query_row([id.as_bytes()], |row| {
                let mut counts_by_state = [0; 8];
                for (code, number) in counts_by_state.iter_mut().enumerate() {
                    *number = row.get(7 + code)?;
                }
                let control: u8 = row.get(1)?;
                let entry = BatchRow {
                    row_id: row.get(0)?,
                    state: BatchState::Done,
                    run: row.get(2)?,
                    last_token: row.get(3)?,
                    is_plan_complete: row.get(4)?,
                    is_ended: row.get(5)?,
                    total: row.get(6)?,
                    created: row.get(15)?,
                    width: row.get(16)?,
                    counts_by_state,
                };
                Ok((entry, control))
            })
            .optional()?;
        row.map(|(entry, code)| Ok(BatchRow { state: decode_batch_state(code)?, ..entry })).transpose()
    }

    pub(super) fn get(connection: &Connection, id: BatchId) -> Result<BatchRow, SqliteError> {
        BatchRow::find(connection, id)?.ok_or_else(|| {
            let error = Error::new(ErrorKind::NotFound, format!("looking for batch {id}"), "there is no such batch");
            SqliteError::Reported(error.with_hint("`imgsync batch list` lists the batches"))
        })
    }

    pub(super) fn count_in_state(&self, state: TaskState) -> i64 {
        self.counts_by_state[usize::from(state.code())]
    }
}

pub(super) fn decode_batch_state(code: u8) -> Result<BatchState, SqliteError> {
    BatchState::ALL.get(usize::from(code)).copied().ok_or_else(|| corrupt_store("a batch has an unknown state").into())
}
