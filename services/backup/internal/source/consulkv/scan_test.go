package consulkv

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// kept is what is passed on of an entry.
type kept struct {
	Key   string
	Flags uint64
	Value []byte
}

func scanAll(r io.Reader) ([]kept, error) { return scanAs(r, API()) }

func scanAs(r io.Reader, names Names) (all []kept, err error) {
	s := NewScanner(r, names)
	if err = s.Begin(); err != nil {
		return nil, err
	}
	for {
		f, err := s.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		k := kept{Flags: f.Flags}
		// As the stream writes it.
		text := `{"Key":` + string(f.Key) + `,"Value":"` + string(f.Value) + `"}`
		if err = json.Unmarshal([]byte(text), &k); err != nil {
			return nil, errors.Join(errors.New("it passed what is no JSON: "+text), err)
		}
		if int64(len(k.Value)) != f.Size {
			return nil, errors.New("it counted wrong: " + text)
		}
		all = append(all, k)
	}
}

// TestScan compares with what the standard library makes of the same text.
func TestScan(t *testing.T) {
	for name, text := range map[string]string{
		"empty":          `[]`,
		"blank":          " \n[ \t]\r\n ",
		"one":            `[{"LockIndex":0,"Key":"a","Flags":0,"Value":"eA==","CreateIndex":1,"ModifyIndex":2}]`,
		"pretty":         "[\n  {\n    \"Key\" : \"a\" ,\n \"Flags\" : 3 , \"Value\":\t\"eA==\"\n } ,\n {\"Key\":\"b\"}\n]\n",
		"null":           `[{"Key":"a","Value":null}]`,
		"no value":       `[{"Key":"a","Value":""}]`,
		"unknown fields": `[{"Key":"a","Session":"x\"]}","More":{"a":[1,{"b":"}"}],"c":null},"On":true,"Value":"eHl6"}]`,
		"escapes":        `[{"Key":"\"\\\/\u00e4\ud83d\ude00\u2028<","Value":"eHl6"}]`,
		"escaped value":  `[{"Key":"a","Value":"Pz8\/"}]`,
		"large flags":    `[{"Key":"a","Flags":18446744073709551615}]`,
		"long":           `[{"Key":"` + strings.Repeat("k", 200_000) + `","Value":"` + strings.Repeat("QUJD", 70_000) + `QQ=="}]`,
		"many":           `[` + strings.Repeat(`{"Key":"a","Value":"eA=="},`, 9000) + `{"Key":"z"}]`,
	} {
		t.Run(name, func(t *testing.T) {
			var want []kept
			require.NoError(t, json.Unmarshal([]byte(text), &want))
			for i := range want {
				if want[i].Value == nil {
					want[i].Value = []byte{}
				}
			}
			for _, r := range []io.Reader{
				strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text)), iotest.DataErrReader(strings.NewReader(text)),
			} {
				got, err := scanAll(r)
				require.NoError(t, err)
				assert.ElementsMatch(t, want, got)
			}
			for range 50 {
				_, err := scanAll(strings.NewReader(text[:rand.IntN(len(strings.TrimSpace(text)))]))
				require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			}
		})
	}
}

func TestScanDamaged(t *testing.T) {
	for _, text := range []string{
		`{}`, `null`, `<html>`, `[1]`, `["a"]`, `[null]`, `[[]]`, `[{}]`, `[,{"Key":"a"}]`, `[{"Key":"a"},]`, `[{"Key":"a"} {"Key":"b"}]`,
		`[{"Key":"a"}}`, `[{"Key":"a"}]x`, `[]]`, `[][]`, `[{"Key":"a",}]`, `[{,"Key":"a"}]`, `[{"Key":"a""Flags":1}]`, `[{"Key"}]`,
		`[{"Key":}]`, `[{"Key" "a"}]`, `[{"Key":"a":1}]`, `[{Key:"a"}]`, `[{1:"a"}]`, `[{"Key":a}]`, `[{"Key":1}]`, `[{"Key":null}]`, `[{"Key":["a"]}]`,
		`[{"Key":"\x"}]`, "[{\"Key\":\"a\nb\"}]", `[{"Key":"a","Flags":-1}]`, `[{"Key":"a","Flags":"1"}]`, `[{"Key":"a","Flags":1.5}]`,
		`[{"Key":"a","Flags":18446744073709551616}]`, `[{"Key":"a","Value":1}]`, `[{"Key":"a","Value":"%"}]`, `[{"Key":"a","Value":"eA="}]`,
		`[{"Key":"a","Value":"eA"}]`, `[{"Key":"a","Value":"e"}]`, `[{"Key":"a","Value":"eA==eA=="}]`, "[{\"Key\":\"a\",\"Value\":\"eA==\n\"}]",
		`[{"Key":"a","Value":"eB=="}]`, `[{"Key":"a","Value":"=="}]`, "[{\"Key\":\"a\",\"Value\":\"eH\nl6\"}]", `[{"Key":"a","X":tru}]`,
		`[{"Key":"a","X":[1,}]}]`, `[{"Key":"a","ModifyIndex":x}]`, `[{"Key":"a"]]`, `[{"Key":"a","Value":"eHl\u000a6"}]`,
		`[{"Key":"a","Value":"` + strings.Repeat("QUJD", valueChunk/4-1) + `QQ==QUJD"}]`,
	} {
		t.Run(text[:min(len(text), 40)], func(t *testing.T) {
			_, err := scanAll(strings.NewReader(text))
			require.ErrorIs(t, err, ErrDamaged)
			require.NotErrorIs(t, err, io.EOF)
		})
	}
}

// TestScanFails passes on why nothing more came.
func TestScanFails(t *testing.T) {
	broken := errors.New("connection reset")
	for _, text := range []string{"", "[", `[{"Key":"a`, `[{"Key":"a"}`, `[{"Key":"a"}]`} {
		_, err := scanAll(io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)))
		require.ErrorIs(t, err, broken, text)
	}
}

// TestScanExport reads what the stock tool exports, with what newer and larger editions add, and does not take one list for the other.
func TestScanExport(t *testing.T) {
	const text = `[{"key":"a","flags":18446744073709551615,"value":"eA==","namespace":"x","partition":"y"},{"key":"b","flags":0,"value":""}]`
	s := NewScanner(strings.NewReader(text), Export())
	require.NoError(t, s.Begin())
	e, err := s.Next()
	require.NoError(t, err)
	assert.Equal(t, Entry{Key: []byte(`"a"`), Flags: 1<<64 - 1, Value: []byte("eA=="), Size: 1}, e)
	e, err = s.Next()
	require.NoError(t, err)
	assert.Equal(t, Entry{Key: []byte(`"b"`), Value: []byte{}}, e)
	_, err = s.Next()
	require.ErrorIs(t, err, io.EOF)

	_, err = scanAll(strings.NewReader(text))
	require.ErrorIs(t, err, ErrDamaged)
}

// TestScanIndex reads what a check-and-set needs.
func TestScanIndex(t *testing.T) {
	s := NewScanner(strings.NewReader(`[{"LockIndex":3,"Key":"a","Flags":0,"Value":null,"CreateIndex":12,"ModifyIndex":18446744073709551615}]`), API())
	require.NoError(t, s.Begin())
	e, err := s.Next()
	require.NoError(t, err)
	assert.Equal(t, uint64(1<<64-1), e.ModifyIndex)
}

// FuzzScan never takes what the standard library refuses, nor reads anything else in it.
func FuzzScan(f *testing.F) {
	f.Add([]byte(`[{"LockIndex":0,"Key":"a","Flags":0,"Value":"eA==","CreateIndex":1,"ModifyIndex":2},{"Key":"b","Value":null}]`))
	f.Add([]byte(`[{"Key":"\"\\\u00e4","Session":"}","X":{"a":[1]},"Value":"eHl6"}]`))
	f.Add([]byte("[\n{\"key\":\"a\",\"flags\":0,\"value\":\"eA==\"},\n{\"key\":\"b\",\"flags\":7,\"value\":\"\"}\n]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for field, names := range map[string]Names{"Key": API(), "key": Export()} {
			got, err := scanAs(strings.NewReader(string(text)), names)
			if err != nil {
				continue
			}
			require.True(t, json.Valid(text), "%q", text)
			var entries []json.RawMessage
			require.NoError(t, json.Unmarshal(text, &entries))
			require.Len(t, got, len(entries))
			for i, e := range entries {
				var fields map[string]json.RawMessage // the library's names have no case, Consul's have
				require.NoError(t, json.Unmarshal(e, &fields))
				var key string
				require.NoError(t, json.Unmarshal(fields[field], &key))
				require.Equal(t, key, got[i].Key)
			}
		}
	})
}
