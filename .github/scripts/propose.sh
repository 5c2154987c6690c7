#!/bin/bash
# Commits what `fl matrix update --write` changed to a branch of its own and opens a pull request, or renews the one that is open.
# $1: the branch; $2: a file with the command's words. GH_TOKEN may push and open pull requests.
set -euo pipefail
branch=$1 words=$2

git config user.name "fl update-matrix"
git config user.email "actions@users.noreply.github.com"
git switch --force-create "$branch"
git add matrix.yaml images docs/stacks.md docs/images.md README.md tests/golden
git commit --message "Newer versions that the rules of the matrix allow"
gh auth setup-git
git push --force origin "HEAD:refs/heads/$branch"

{
  echo "Found by \`fl matrix update --write\`. The rows that changed are not proven any more: \`fl conform --stack ID\` proves them."
  echo '```'
  cat "$words"
  echo '```'
} > "$words.md"
if [ -z "$(gh pr list --head "$branch" --state open --json number --jq '.[].number')" ]; then
  gh pr create --head "$branch" --title "Newer versions for the matrix" --body-file "$words.md"
else
  gh pr edit "$branch" --body-file "$words.md"
fi
