//! Mistakes that can be planted into the simulated environment. Each one breaks what one oracle watches; the tests
//! plant it and see the oracle fire. The machines under test stay as they are.

/// A planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Gateways are told that draining and dead servers are active and well.
    HidesDrains,
    /// Servers close twice as many connections as their order allows.
    ClosesTwice,
    /// The provider stops a server as soon as its drain is ordered.
    StopsEarly,
    /// A server forgets which orders it obeyed whenever a message comes.
    ForgetsOrders,
    /// Orders never reach the servers.
    LosesOrders,
}
