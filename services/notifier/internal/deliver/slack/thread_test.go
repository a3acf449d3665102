package slack_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/chattest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

func TestAChannelWithoutThreadsStillHearsWhatFires(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	chat.FailAll(chattest.SlackThread, chattest.Fault{Word: "restricted_action_non_threadable_channel"})
	ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	require.NoError(t, err, "the message stands")
	require.Len(t, chat.Messages(), 1)
	second, err := s.Send(t.Context(), group(notice.Firing, told(fires("A")), fires("B")), ref, free)
	require.NoError(t, err)
	assert.NotEqual(t, ref.ID, second.ID, "posted anew, because an edit is noticed by nobody")
	ms := chat.Messages()
	require.Len(t, ms, 2)
	assert.Equal(t, "#d32f2f", ms[1].Colour)
	assert.Empty(t, ms[0].Colour, "nothing would ever make it green")
	assert.Equal(t, "➡️ Goes on in a newer message: [firing] Etcd", ms[0].Title)

	// A repeat rings as well, also when what came before it broke off.
	chat.FailNext(chattest.SlackThread, 1, chattest.Fault{Status: 503})
	second, err = s.Send(t.Context(), group(notice.Firing, fires("A")), second, free)
	assert.Equal(t, "retry", kind(err))
	second.Resumed = true
	third, err := s.Send(t.Context(), group(notice.Firing, fires("A")), second, free)
	require.NoError(t, err)
	assert.NotEqual(t, second.ID, third.ID)
	assert.Len(t, chat.Messages(), 3)
	_, err = s.Send(t.Context(), group(notice.Resolved, ended("A"), ended("B")), third, free)
	require.NoError(t, err)
	ms = chat.Messages()
	require.Len(t, ms, 3, "an end is no reason for another one")
	assert.Equal(t, []string{"", "", "#2eb886"}, []string{ms[0].Colour, ms[1].Colour, ms[2].Colour})
}

// The reply to the first message failed, and meanwhile another alert came: what is sent now is not what was begun.
func TestAReplyThatIsMissingIsMadeUpForLoudly(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	chat.FailNext(chattest.SlackThread, 2, chattest.Fault{Status: 503})
	ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	assert.Equal(t, "retry", kind(err))
	both := group(notice.Firing, fires("A"), fires("B"))
	ref, err = s.Send(t.Context(), both, ref, free)
	assert.Equal(t, "retry", kind(err))
	ref.Resumed = true
	ref, err = s.Send(t.Context(), both, ref, free)
	require.NoError(t, err)
	ms := chat.Messages()
	require.Len(t, ms, 2)
	assert.True(t, ms[1].Broadcast, "B was only in an edit")
	assert.Contains(t, ms[1].Text, "Everything about B")
	assert.Equal(t, 1, ref.Thread)
}

// A repeat is an edit of the group's message: its reply is seen in the channel.
func TestARepeatIsSeenInTheChannel(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	require.NoError(t, err)
	_, err = s.Send(t.Context(), group(notice.Firing, fires("A")), ref, free)
	require.NoError(t, err)
	ms := chat.Messages()
	require.Len(t, ms, 3)
	assert.Equal(t, 1, ms[0].Edited)
	assert.True(t, ms[2].Broadcast)
}

func TestWhatADigestToldIsOnlyBroughtUpToDate(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	ref, err := s.Send(t.Context(), group(notice.Firing, fires("A")), notice.Ref{}, free)
	require.NoError(t, err)
	n := group(notice.Resolved, ended("A"))
	n.Quiet = true
	counted := &calls{}
	again, err := s.Send(t.Context(), n, ref, counted.take)
	require.NoError(t, err)
	assert.Equal(t, ref, again)
	assert.Equal(t, []notice.Call{notice.Update}, counted.taken)
	assert.Equal(t, "#2eb886", chat.Messages()[0].Colour)
	// It is gone: there is nothing to bring up to date.
	chat.Delete(ref.ID)
	again, err = s.Send(t.Context(), n, ref, free)
	require.NoError(t, err)
	assert.Empty(t, again.ID)
	assert.Len(t, chat.Messages(), 1, "nothing is posted")
}

// The message stands for all of its group, also for what came in another part.
func TestAMessageSaysThatOthersOfItsGroupFire(t *testing.T) {
	t.Parallel()
	s, chat := robot(t, chattest.Options{NoLimits: true})
	n := group(notice.Firing, ended("A"))
	n.Severity, n.StillFires = "", 700
	ref, err := s.Send(t.Context(), n, notice.Ref{}, free)
	require.NoError(t, err)
	ms := chat.Messages()
	assert.Equal(t, "#d32f2f", ms[0].Colour)
	assert.Contains(t, ms[0].Text, "700 more of this group firing")
	assert.NotContains(t, ms[1].Text, "700", "in the thread it would be news")
	chat.FailNext(chattest.SlackUpdate, 1, chattest.Fault{Word: "msg_too_long"})
	_, err = s.Send(t.Context(), n, ref, free)
	require.NoError(t, err)
	assert.Contains(t, chat.Messages()[0].Text, "700 more of this group firing")
}
