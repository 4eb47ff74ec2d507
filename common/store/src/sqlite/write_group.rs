//! A transaction of several calls: [`WriteGroup`].

use std::cell::RefCell;

use rusqlite::Connection;

use super::error::SqliteError;
use super::ledger::batch_tx::BatchTx;
use imgsync_model::batch::BatchId;

/// A transaction of several calls. Calls on tasks of one batch share its row, which is read once and written once.
pub(super) struct WriteGroup<'c> {
    connection: &'c Connection,
    shared: RefCell<Option<(BatchId, BatchTx<'c>)>>,
}

impl<'c> WriteGroup<'c> {
    pub(super) fn new(connection: &'c Connection) -> WriteGroup<'c> {
        WriteGroup { connection, shared: RefCell::new(None) }
    }

    /// Returns the connection. A batch whose row is shared must have been written: see [`WriteGroup::write_all_but`].
    pub(super) fn connection(&self) -> &'c Connection {
        self.connection
    }

    /// Writes the row of the shared batch, unless it is this one, and shares it no more. Call it outside of a savepoint:
    /// a rollback to the savepoint would undo the earlier calls.
    pub(super) fn write_all_but(&self, batch: Option<BatchId>) -> Result<(), SqliteError> {
        let mut shared = self.shared.borrow_mut();
        match shared.take() {
            Some((id, tx)) if batch == Some(id) => *shared = Some((id, tx)),
            Some((_, mut tx)) => tx.write()?,
            None => {}
        }
        Ok(())
    }

    /// Returns what is shared, for [`WriteGroup::restore`].
    pub(super) fn snapshot(&self) -> Option<(BatchId, BatchTx<'c>)> {
        self.shared.borrow().clone()
    }

    /// Shares what was shared before a call that was undone. `None` after a rollback of the whole transaction: others
    /// may have changed the batch meanwhile.
    pub(super) fn restore(&self, before: Option<(BatchId, BatchTx<'c>)>) {
        *self.shared.borrow_mut() = before;
    }

    /// Runs work on a batch; `None` if the batch is unknown.
    pub(super) fn with_batch<T>(
        &self,
        id: BatchId,
        work: impl FnOnce(&mut BatchTx<'c>) -> Result<T, SqliteError>,
    ) -> Result<Option<T>, SqliteError> {
        let mut shared = self.shared.borrow_mut();
        let mut tx = match shared.take() {
            Some((found, tx)) if found == id => tx,
            _ => match BatchTx::find(self.connection, id)? {
                Some(tx) => tx,
                None => return Ok(None),
            },
        };
        let result = work(&mut tx);
        *shared = Some((id, tx));
        result.map(Some)
    }
}
