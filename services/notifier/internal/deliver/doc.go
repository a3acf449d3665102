package deliver

// Who may send what when.
//
// A receiver has one consumer over the whole fleet, with one message in flight: whoever holds the oldest delivery, the head, owns
// the receiver's queue. Nobody else sends to the receiver until it is acknowledged, or its holder's heartbeats have stopped for 30 s. A
// holder that only stood still, and comes back, learns from its next heartbeat that it lost the head; what it was just sending
// may then come twice, and its state is refused (the group's state is written with an expected sequence).
//
// The head is sent at once when the budget of its robot or channel has room. When it has not, because we would exceed the chat's limit,
// or because the chat throttled us or is down, the holder keeps the head, reads what waits behind it, and does in turn, until the
// head itself is done:
//
//	hand on    to the fallback what has waited for fallback_after
//	give up    what has waited for give_up_after: dead letter
//	send       critical groups first, each in a message of its own, or in digests when there are more than the limit lets through soon
//	send       the others: each group in its own message while that is a matter of seconds, else as many as fit in one digest
//
// What fails again and again is put aside while others wait, and what is not critical gets a turn now and then while critical ones never
// cease. A message of several parts of which one was sent goes on before anything of its kind.
//
// What was handed on while it fired is noted in the group, so that the fallback is told too when the first receiver hears that it ended.
//
// A bot's chat has one message for each group, which stands for all of it: it fires while anything fires that the group's state knows,
// also what came in another part of the webhook or flaps, unless Alertmanager said since that the whole group has ended, or a day went by
// without a word of it. A digest is a message of its own; afterwards those of its groups are brought up to date, beside the queue, as their
// own budget has room and without ringing anybody. What of that is left when a process ends, or is more than 400 messages, stays as
// it was until the group's next news. So does the message of a group of which the end was handed on: the fallback tells it, and the first
// chat did not answer. And what Alertmanager leaves out of a group for a while, because it is inhibited or silenced, does not fire there
// until the next change or repeat says that it does.
//
// A delivery that is not the head is deleted from the stream once it is done, the head is acknowledged.
//
// What survives a crash. Before the send: everything, the next holder begins anew. After the send and before the group's state is
// written: the message is sent again, and where a chat keeps one for each group that it edits, nobody knows where the first one stands: it
// stays as it is, red perhaps. After the state: the deliveries fold into nothing and are only recorded. A group that needs several
// messages notes in its state how many have been sent. Of NATS's data: the groups' states are gone with the queue, so that alerts which
// fire on are told once more.
//
// Every delivery ends with one event: alert.delivered, alert.folded (nothing in it was news), alert.handed-on, or alert.dead beside
// its dead letter. Their attribute alerts adds up to the alerts that were routed, but for those that are held, which count when they
// are released.
