//! Sessions of the endpoints on a host.

use super::Host;
use crate::endpoint::{Endpoint, Reply, RequestId};
use crate::message::{Answer, Envelope, Failure, Message, Op, Request};
use crate::{HostId, SessionId, Time};
use blocks::VolumeId;

impl Host {
    /// Opens a session for a volume whose replicas are on these hosts. `session` is never used again.
    ///
    /// # Panics
    /// When there are no hosts.
    pub fn open_session(&mut self, session: SessionId, volume: VolumeId, hosts: Vec<HostId>) {
        assert!(!hosts.is_empty(), "a volume has replicas");
        self.endpoints
            .insert(session, Endpoint::new(volume, session, hosts));
    }

    /// From now on a session's volume has its replicas on these hosts.
    ///
    /// # Panics
    /// When there are no hosts.
    pub fn move_session(&mut self, session: SessionId, hosts: Vec<HostId>) {
        assert!(!hosts.is_empty(), "a volume has replicas");
        if let Some(endpoint) = self.endpoints.get_mut(&session) {
            endpoint.ask_of(hosts);
        }
    }

    /// Ends a session: its requests are not answered any more.
    pub fn close_session(&mut self, session: SessionId) {
        self.endpoints.remove(&session);
    }

    /// A request of a session; [`Self::poll_reply`] answers it. `None`: there is no such session.
    pub fn ask(&mut self, session: SessionId, op: Op, now: Time) -> Option<RequestId> {
        self.now = now;
        let asked = self.endpoints.get_mut(&session)?.ask(op, now);
        let request = match asked {
            Ok(request) => request,
            Err(reply) => {
                let request = reply.request;
                self.replies.push_back(reply);
                request
            }
        };
        self.pump();
        Some(request)
    }

    /// Answers to endpoints.
    pub fn poll_reply(&mut self) -> Option<Reply> {
        self.replies.pop_front()
    }

    pub(super) fn answered(&mut self, volume: VolumeId, answer: Answer) {
        let endpoint = self.endpoints.get_mut(&answer.session);
        if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.volume == volume) {
            self.replies.extend(endpoint.answer(answer, self.now));
        }
    }

    /// A request of an endpoint, here or on another host. Who has no replica says so: the endpoint would wait before it
    /// asks the next one, and a volume may have moved from all that it knows of.
    pub(super) fn request(&mut self, from: HostId, volume: VolumeId, request: Request) {
        if self.groups.contains_key(&volume) {
            self.with(volume, |group, context| {
                group.request(context, from, request)
            });
            return;
        }
        let (leader, term) = (None, 0);
        let answer = Answer {
            session: request.session,
            id: request.id,
            term: request.term,
            result: Err(Failure::NotLeader { leader, term }),
        };
        if from == self.id {
            self.out.local.push((volume, answer));
        } else {
            let message = Message::Answer(answer);
            self.out.messages.push((from, Envelope { volume, message }));
        }
    }

    pub(super) fn poll_endpoints(&mut self) -> bool {
        let mut all = Vec::new();
        for endpoint in self.endpoints.values_mut() {
            self.replies.extend(endpoint.expire(self.now));
            let requests = endpoint.poll(self.now).into_iter();
            all.extend(requests.map(|(to, request)| (to, endpoint.volume, request)));
        }
        let any = !all.is_empty();
        for (to, volume, request) in all {
            if to == self.id {
                self.request(to, volume, request);
            } else {
                let message = Message::Request(request);
                self.out.messages.push((to, Envelope { volume, message }));
            }
        }
        any
    }
}
