package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// storeInit are the flags of `lifeboat store init`.
type storeInit struct {
	reader
	policies, principal string
	replace             bool
}

// StoreCommand is `lifeboat store`.
func StoreCommand() *cobra.Command {
	var f storeInit
	cmd := &cobra.Command{
		Use: "init", Short: "Make the bucket where there is none, and give each role its rights",
		Long: "init makes the configuration's bucket if it is not there, with versions (and object lock, if store.object_lock is set), and\n" +
			"puts a bucket policy that lets each role's user do what the policy of that role says and nothing else. Run it with the\n" +
			"credentials of the bucket's owner: they are those that the configuration names. Running it again changes nothing.",
		Example: "  lifeboat store init --policies deploy/s3 --principal 'lifeboat-{role}'\n" +
			"  lifeboat store init --policies deploy/s3 --principal 'arn:aws:iam::123456789012:user/lifeboat-{role}'\n" +
			"  lifeboat store init --store copy",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f.addStore(cmd)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	cmd.Flags().StringVar(&f.policies, "policies", "", "`folder` with a policy for each role, named for it: snapshot.json and so on")
	cmd.Flags().StringVar(&f.principal, "principal", "lifeboat-{role}", "`name` of the user of a role, as the store's policies name users")
	cmd.Flags().BoolVar(&f.replace, "replace-policy", false, "replace a policy that the bucket has already")
	return service.Group(&cobra.Command{Use: "store", Short: "Prepare the bucket"}, cmd)
}

func (f *storeInit) run(ctx context.Context, out io.Writer) error {
	b, err := f.bucket(ctx)
	if err != nil {
		return err
	}
	chosen := b.config.Store.ObjectStore
	if f.store == storeCopy {
		chosen = *b.config.Store.Copy
	}
	// Read before anything is changed.
	var policy string
	if f.policies != "" {
		if policy, err = bucketPolicy(f.policies, chosen.Bucket, f.principal); err != nil {
			return &service.UsageError{Err: err}
		}
	}
	made, err := b.objects.Create(ctx)
	if err != nil {
		return err
	}
	say := func(changed bool, did, was string) error {
		text := was
		if changed {
			text = did
		}
		_, failed := fmt.Fprintf(out, "bucket %s: %s\n", chosen.Bucket, text)
		return failed
	}
	if err = say(made, "made", "it is there already"); err != nil {
		return err
	}
	versions, err := b.objects.KeepsVersions(ctx)
	if err != nil {
		return err
	}
	if err = say(versions == "enabled", "it keeps versions", "it keeps no versions (it says: "+versions+
		"), so that what is written over or deleted is gone: switch them on"); err != nil || policy == "" {
		return err
	}
	set, err := b.objects.SetPolicy(ctx, policy, f.replace)
	if errors.Is(err, s3.ErrOtherPolicy) {
		return fmt.Errorf("%w: look at it, and if nothing else needs it run this again with --replace-policy", err)
	}
	if err != nil {
		return err
	}
	return say(set, "each role's user now has its rights", "each role's user has its rights already")
}

// bucketPolicy joins the roles' policies into one of the bucket. {role} in principal stands for the role.
func bucketPolicy(dir, bucket, principal string) (string, error) {
	if !strings.Contains(principal, "{role}") {
		return "", console.Usagef("--principal: %q does not contain {role}: all roles would be one user, with the rights of all", principal)
	}
	var all struct {
		Version   string
		Statement []map[string]any
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return "", fmt.Errorf("looking for policies in %s: %w", dir, err)
	}
	if len(files) == 0 {
		return "", console.Usagef("--policies: there is no policy (snapshot.json and so on) in %s", dir)
	}
	for _, file := range files {
		role := strings.TrimSuffix(filepath.Base(file), ".json")
		b, failed := os.ReadFile(file)
		if failed != nil {
			return "", fmt.Errorf("reading the policy of role %s: %w", role, failed)
		}
		one := all
		one.Statement = nil
		if failed = json.Unmarshal([]byte(strings.ReplaceAll(string(b), "BUCKET", bucket)), &one); failed != nil {
			return "", fmt.Errorf("reading the policy of role %s: %w", role, failed)
		}
		all.Version = one.Version
		for _, s := range one.Statement {
			s["Principal"] = map[string]any{"AWS": []string{strings.ReplaceAll(principal, "{role}", role)}}
			all.Statement = append(all.Statement, s)
		}
	}
	b, err := json.Marshal(all)
	return string(b), err
}
