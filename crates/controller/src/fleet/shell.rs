//! What the task does for one input and for one output.

use std::sync::Arc;

use evenkeel_fleet::controller::{Controller, Event, Input, Order, OrderId, Output, Provided, Registration};
use evenkeel_model::{Desired, Epoch, Incarnation, Report, ServerId};
use evenkeel_protocol::close::CloseReason;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{Fault, Fleet, Greeting, LinkEnd, LinkId, OrderAnswer, Pending, PostAnswer, ToFleet, server_of};
use crate::directory::ClaimError;
use crate::providers::Want;
use crate::registration::check_applied;
use crate::status::FleetStatus;
use crate::store::Change;

/// The durable change in an output, or the output.
pub(super) fn change(output: Output) -> Result<Change, Output> {
    match output {
        Output::Persist(record) => Ok(Change::Server(record)),
        Output::Forget(server) => Ok(Change::Forget(server)),
        Output::PersistFixed(fixed) => Ok(Change::Fixed(fixed)),
        output => Err(output),
    }
}

impl Fleet {
    /// Takes one input.
    pub(super) async fn take(&mut self, controller: &mut Controller, input: ToFleet) -> Result<(), Fault> {
        match input {
            ToFleet::Hello { registration, link, reply } => {
                self.greet(controller, registration, link, reply).await
            }
            ToFleet::Reported { server, link, report } => {
                self.reported(controller, server, link, report).await
            }
            ToFleet::Posted { server, registration, report, reply } => {
                let answer = self.posted(controller, &server, registration, report).await?;
                // Whoever asked may have gone.
                let _ = reply.send(answer);
                Ok(())
            }
            ToFleet::Applied { server, link, fence } if self.memory.is_link(&server, link) => {
                if check_applied(fence, self.memory.epoch).is_ok() {
                    self.memory.seen = self.memory.seen.max(fence.epoch);
                }
                self.feed(controller, Input::Applied { server, fence }).await
            }
            ToFleet::Spoke { server, link } if self.memory.is_link(&server, link) => {
                self.feed(controller, Input::Spoke { server }).await
            }
            ToFleet::Drained { server, link, fence } if self.memory.is_link(&server, link) => {
                self.feed(controller, Input::Drained { server, fence }).await
            }
            ToFleet::LinkLost { server, link, inc } if self.memory.is_link(&server, link) => {
                self.memory.links.remove(&server);
                self.feed(controller, Input::LinkLost { server, inc }).await
            }
            // Of a link that was replaced.
            ToFleet::Spoke { .. }
            | ToFleet::Applied { .. }
            | ToFleet::Drained { .. }
            | ToFleet::LinkLost { .. } => Ok(()),
            ToFleet::Ordered { order, reply } => self.ordered(controller, order, reply).await,
            ToFleet::Said(input) => self.feed(controller, input).await,
            ToFleet::Ask(reply) => {
                let _ = reply.send(Arc::new(self.status(controller)));
                Ok(())
            }
            #[cfg(test)]
            ToFleet::Panic => panic!("planned"),
        }
    }

    async fn greet(
        &mut self,
        controller: &mut Controller,
        registration: Registration,
        link: LinkEnd,
        reply: oneshot::Sender<Greeting>,
    ) -> Result<(), Fault> {
        let server = registration.id.clone();
        if let Err(error) = self.owners.claim(&server, &self.settings.policy.id) {
            let close = match error {
                ClaimError::Taken { .. } => CloseReason::Forbidden,
                ClaimError::Full => CloseReason::TimedOut,
            };
            let _ = reply.send(Greeting::Refused { why: error.to_string(), close });
            return Ok(());
        }
        let known = self.known(controller, &server);
        let stale = registration.inc < known || (registration.inc == known && self.memory.linked(&server));
        if stale {
            let _ = reply.send(Greeting::Stale { known });
            return Ok(());
        }
        let applied = registration.applied.unwrap_or_default();
        if let Err(error) = check_applied(applied, self.memory.epoch) {
            let _ = reply.send(Greeting::Refused { why: error.to_string(), close: error.close() });
            return Ok(());
        }
        // The next term begins above it, also where our store was lost.
        self.memory.seen = self.memory.seen.max(applied.epoch);
        self.memory.registered.insert(server.clone(), registration.clone());
        // A link of an earlier life ends with its fleet's end.
        self.memory.links.insert(server.clone(), link);
        let _ = reply.send(Greeting::Welcome);
        self.feed(controller, Input::Registered(registration)).await?;
        debug_assert!(
            controller.desired(&server).is_none_or(|desired| desired.fence > applied),
            "the machine overtakes what an agent obeyed"
        );
        self.send_desired(controller, &server);
        Ok(())
    }

    /// Highest life known of a server; 0 for an unknown one.
    fn known(&self, controller: &Controller, server: &ServerId) -> Incarnation {
        let linked = self.memory.links.get(server).map(|link| link.inc);
        controller.incarnation(server).max(linked).unwrap_or_default()
    }

    async fn reported(
        &mut self,
        controller: &mut Controller,
        server: ServerId,
        link: LinkId,
        report: Report,
    ) -> Result<(), Fault> {
        if !self.memory.is_link(&server, link) {
            self.metrics.reported(&self.settings.policy.id, "replaced");
            return Ok(());
        }
        self.metrics.reported(&self.settings.policy.id, "taken");
        self.feed(controller, Input::Reported { server: server.clone(), report }).await?;
        // Renews the lease: only a control loop that lives lets moves go on.
        self.send_desired(controller, &server);
        Ok(())
    }

    async fn posted(
        &mut self,
        controller: &mut Controller,
        server: &ServerId,
        registration: Option<Registration>,
        report: Report,
    ) -> Result<PostAnswer, Fault> {
        let known = self.known(controller, server);
        if report.inc < known {
            self.metrics.reported(&self.settings.policy.id, "stale");
            return Ok(PostAnswer::Stale { known });
        }
        if let Some(registration) = registration {
            if let Err(error) = self.owners.claim(server, &self.settings.policy.id) {
                return Ok(PostAnswer::Refused { why: error.to_string() });
            }
            let news = self.memory.registered.get(server) != Some(&registration);
            if news || controller.desired(server).is_none() {
                self.memory.registered.insert(server.clone(), registration.clone());
                self.feed(controller, Input::Registered(registration)).await?;
            }
        }
        if controller.desired(server).is_none() {
            return Ok(PostAnswer::Unknown);
        }
        self.metrics.reported(&self.settings.policy.id, "posted");
        self.feed(controller, Input::Reported { server: server.clone(), report }).await?;
        Ok(controller.desired(server).map_or(PostAnswer::Unknown, PostAnswer::Desired))
    }

    async fn ordered(
        &mut self,
        controller: &mut Controller,
        order: Order,
        reply: oneshot::Sender<OrderAnswer>,
    ) -> Result<(), Fault> {
        self.memory.next_order += 1;
        let id = OrderId(self.memory.next_order);
        self.memory.pending.insert(id, Pending { order: name_of(&order), reply });
        self.feed(controller, Input::Ordered(id, order)).await
    }

    /// Performs one output that needs no storing.
    pub(super) fn perform_one(&mut self, output: Output) {
        match output {
            Output::Publish(snapshot) => {
                self.memory.published = Some(Arc::clone(&snapshot));
                self.memory.version = self.publisher.publish(snapshot);
            }
            Output::Desire(server, desired) => self.memory.desire(&server, desired),
            Output::Create(server) => self.create(server),
            Output::Terminate(server) => match &self.provider {
                Some(provider) => provider.want(server, Want::Stop),
                None => warn!(fleet = %self.settings.policy.id, %server, "nobody here can stop servers"),
            },
            Output::Answer(id, result) => self.answer(id, result.map_err(Into::into)),
            Output::Event(event) => self.tell(event),
            // Taken out by `change`.
            Output::Persist(_) | Output::Forget(_) | Output::PersistFixed(_) => {}
        }
    }

    fn create(&mut self, server: ServerId) {
        let Some(provider) = &self.provider else {
            warn!(fleet = %self.settings.policy.id, %server, "nobody here can start servers");
            return;
        };
        if let Err(error) = self.owners.claim(&server, &self.settings.policy.id) {
            error!(fleet = %self.settings.policy.id, %server, %error, "server not started");
            return;
        }
        provider.want(server, Want::Run);
    }

    fn answer(&mut self, id: OrderId, result: OrderAnswer) {
        let Some(Pending { order, reply }) = self.memory.pending.remove(&id) else { return };
        let outcome = if result.is_ok() { "taken" } else { "refused" };
        self.metrics.ordered(&self.settings.policy.id, order, outcome);
        if result.is_err() {
            let _ = reply.send(result);
            return;
        }
        let (publisher, version) = (self.publisher.clone(), self.memory.version);
        self.tasks.spawn("order_answer", async move {
            publisher.installed(version).await;
            let _ = reply.send(result);
        });
    }

    fn tell(&mut self, event: Event) {
        let fleet = &self.settings.policy.id;
        // Absent where the event is about the fleet.
        let server = event.server.as_ref().map(ServerId::as_str);
        let trouble =
            matches!(event.kind, "suspect" | "dead" | "exited" | "boot_failed" | "probation" | "overload");
        if trouble {
            warn!(%fleet, server, reason = event.kind, detail = event.text, "fleet event");
        } else {
            info!(%fleet, server, reason = event.kind, detail = event.text, "fleet event");
        }
        self.metrics.event(fleet, &event);
        self.events.push(fleet, event);
    }

    /// Remembers what the provider said, for the next machine.
    pub(super) fn note_provided(&mut self, word: &Provided) {
        let server = server_of(word).clone();
        match word {
            Provided::Running { url, .. } => {
                if let Err(error) = self.owners.claim(&server, &self.settings.policy.id) {
                    error!(fleet = %self.settings.policy.id, %server, %error, "server id in two fleets");
                }
                self.memory.provided.insert(server, (Arc::clone(url), None));
            }
            Provided::Exited { .. } | Provided::Failed { .. } => {
                if let Some((_, trouble)) = self.memory.provided.get_mut(&server) {
                    *trouble = Some(word.clone());
                }
            }
            Provided::Gone { .. } => {
                self.memory.provided.remove(&server);
            }
        }
        if let Some(provider) = &self.provider {
            provider.noted(word);
        }
    }

    /// Forgets a server that the machine has forgotten. A link that is still there ends, so that its agent says anew
    /// who it is.
    pub(super) fn forget(&mut self, server: &ServerId) {
        self.memory.registered.remove(server);
        self.memory.links.remove(server);
        if self.settings.servers.iter().all(|configured| configured.id != *server) {
            self.owners.release(server, &self.settings.policy.id);
        }
    }

    /// Sends a server's agent its order (again).
    pub(super) fn send_desired(&self, controller: &Controller, server: &ServerId) {
        if let Some(desired) = controller.desired(server) {
            self.memory.desire(server, desired);
        }
    }

    fn status(&self, controller: &Controller) -> FleetStatus {
        let now = self.clock.now();
        FleetStatus {
            fleet: self.settings.policy.id.clone(),
            at: now,
            epoch: self.epoch(),
            servers: controller.servers(now),
            agents: self.memory.links.values().filter(|link| !link.desired.is_closed()).count(),
            explanation: controller.explanation().clone(),
            provided: self.provider.is_some(),
        }
    }

    fn epoch(&self) -> Epoch {
        self.memory.epoch
    }
}

impl super::Memory {
    fn desire(&self, server: &ServerId, desired: Desired) {
        if let Some(link) = self.links.get(server) {
            link.desired.send_replace(Some(desired));
        }
    }
}

fn name_of(order: &Order) -> &'static str {
    match order {
        Order::Drain { .. } => "drain",
        Order::Undrain { .. } => "undrain",
        Order::Cordon { .. } => "cordon",
        Order::Shed { .. } => "shed",
        Order::Scale { .. } => "scale",
    }
}
