"""Pack the small files of a pipeline into an archive: enough to summarise and inspect it elsewhere."""

import io
import tarfile
import zlib
from pathlib import Path

from rlt_jax.errors import UserError
from rlt_jax.report.whole_file import whole_file
from rlt_jax.studies.pipeline_folder import SECONDS_FILE, check_work_folder

MAX_BYTES = 15_500_000  # of files in an archive, which is less than 16 MiB including its overhead
PACKED = (  # first what the summary needs, then what is useful to read, while there is room
    ("results/*", SECONDS_FILE, "tasks/*.yaml", "*/config.yaml", "*/metrics.jsonl", "*/eval.jsonl", "*/curves.png"),
    ("evaluated/*.summary.json", "tasks/*.log", "*/logs/training.log", "*/completions.jsonl", "evaluated/*.jsonl"),
    ("explained/*.jsonl", "data/*.jsonl"),
)


def collect(work: Path, archive: Path) -> None:
    """Pack the small files of a work folder, starting with those that the summary needs.

    Raises:
      UserError: there is no such folder, or the files that the summary needs are too large.
    """
    check_work_folder(work, "--work")
    room, left_out = MAX_BYTES, []
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for number, patterns in enumerate(PACKED):
            files = {file for pattern in patterns for file in work.glob(pattern) if file.is_file()}
            for file in sorted(files, key=lambda file: (file.stat().st_size, file)):
                size = len(zlib.compress(file.read_bytes())) + 1024
                if size <= room:
                    tar.add(file, arcname=f"{work.name}/{file.relative_to(work)}", recursive=False)
                    room -= size
                elif number == 0:
                    raise UserError(f"{file} does not fit into an archive of 16 MiB with the summary's other files")
                else:
                    left_out.append(str(file.relative_to(work)))
    with whole_file(archive, "--collect") as path:
        path.write_bytes(content.getvalue())
    without = f", without {', '.join(dict.fromkeys(left_out))}" if left_out else ""
    print(f"{len(content.getvalue()) / 1e6:.1f} MB{without}: {archive}")
