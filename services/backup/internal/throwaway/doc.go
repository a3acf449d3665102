// Package throwaway runs servers that live as long as a restore drill: an etcd in this process, and real consul and nomad
// servers as processes of their own. A drill restores into them with the code that restores into production, so what keeps
// them apart from production has to hold whatever the restored data says.
//
// # Who has authority
//
// The folder is the drill's: a [Scratch] is locked as long as the process that made it lives, and everything that belongs to a
// drill is in it: data, configuration, keys, tokens, sockets, logs, and the lists of processes and of further folders. Whoever gets the lock of a scratch
// folder may end the processes on its list and remove it, and nobody else may.
//
// The servers are told everything by a configuration of this package's making (mode 0600, in the folder), and nothing by the
// environment: a child gets PATH, HOME and TMPDIR. They serve one client, this process:
//
//   - Consul's API is a unix socket in the folder, which only this user may enter.
//   - Nomad's API is such a socket too, which a relay carries into the server's network namespace. Without a namespace it is a
//     port on loopback that asks for a client certificate. A management token is needed in either case.
//   - What the servers keep open for their peers (RPC, gossip) is on loopback and asks for a certificate, or a key, that was made
//     for this one server; the authority that signed it is gone once it has.
//
// # What a server can reach
//
// [Confined] is this program run again as the parent of a server, in a network namespace of its own that has a loopback interface
// and nothing else. There is no route from there to anything: not to production, and not to what listens on the real loopback,
// such as the Consul agent of the machine. It also takes away every capability with which a server of root's could leave, and
// it refuses to start a server when it finds itself in a namespace that has other interfaces.
//
// Where the machine refuses namespaces (many containers do), the configuration alone has to do: nothing is joined,
// advertised, fetched or reported. Two of Nomad's habits matter there. It looks for a Consul agent on 127.0.0.1:8500 by itself, joins
// the servers that it finds in it, and removes from it the Nomad services that it does not know; so it is given a socket that
// does not exist. And it refuses jobs with a vault block unless Vault is on; so Vault is on, with an address at which nothing
// listens. [Server.Isolation] says which of the two a server has, for the report; Options.RequireIsolation makes the lesser one an error.
//
// The in-process etcd has no namespace: it shares this process, and serves only loopback ports that it picked.
//
// # What survives a crash
//
//   - Kill -9 of this process: the kernel kills each child (PR_SET_PDEATHSIG), and each child's child in turn. A program file with
//     capabilities would lose that signal, so children run with no_new_privs. The folder stays, unlocked.
//   - The next [NewScratch] in the same parent folder takes the lock of what was left, ends the processes on its list that still
//     run (by id, start time and namespace of ids, so that nobody else's process is ever taken for one), and removes it.
//   - A reboot: no process, the folder as above.
//   - A server's own death: [Server.Done] is closed, and [Server.Err] has the end of its log. Nothing is started again: a drill whose
//     server died has failed.
//
// # Budget
//
// [Scratch.Watch] measures the folder and the processes several times a second, and ends the drill's context with a [BudgetError] when
// either is over its budget, or when the disk is full. It is a watch and not a wall: in the time between two looks a server can
// take more. Whoever needs a wall sets one outside (a quota, a cgroup).
package throwaway
