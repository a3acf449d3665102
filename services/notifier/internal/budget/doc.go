// Package budget counts what each robot and channel is sent by the whole fleet, because the chats do: a DingTalk robot that is sent more
// than 20 messages within a minute is blocked for ten.
//
// The log of a robot's last window is one message in JetStream, replaced by compare-and-swap (bus.State): whoever sends has written
// before that it does. So two processes, or one that was killed and its successor, cannot both use the same room, and while NATS is
// away nothing is sent.
//
//	room     A message is counted by Take when its time is written, before it is sent. A process that dies in between has used room
//	         for nothing; never the reverse.
//	paused   The chat said that it must be left alone. Take counts nothing until then, in every process.
//	trouble  Why deliveries come late, for people who read them; it begins once and ends with the first success.
//
// Each process remembers what it read or wrote last, with its sequence: while it is the only one that sends, Take is one write and no
// read. A write that somebody else was faster than is refused by the server, and decided again on what that one wrote.
//
// The processes' clocks are compared with each other, so they must agree within what a limit leaves below the chat's own.
package budget
