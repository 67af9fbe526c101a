from __future__ import annotations

import json
from pathlib import Path

import pytest

from fllm.data import Cohort, load_cohort, write_cohort

SECRET = "zebrafish"
"""Stands in every text of the small release; no message may repeat it."""

FIRST_ID = 10000001


def small_release(folder: Path) -> Path:
    """Write a release of four cases by hand, with the oddities of the real one; the ids are invented."""
    ids = [FIRST_ID + i for i in range(4)]
    tables = {
        "history_of_present_illness.csv": "hadm_id,hpi\n"
        + "".join(f'{i}," ___ is a ___ year old with {SECRET},\n""quoted"" pain"\n' for i in ids),
        "physical_examination.csv": "hadm_id,pe\n" + "".join(f'{i},"Abd: soft, {SECRET}\n\nExt: warm"\n' for i in ids),
        "laboratory_tests.csv": "hadm_id,itemid,valuestr,ref_range_lower,ref_range_upper\n"
        f"{ids[0]},51755,12.4 K/uL,4.0,11.0\n"
        f"{ids[0]},50956,180.0 IU/L,0.0,60.0\n"
        f"{ids[0]},50956,20.0 IU/L,0.0,60.0\n"
        f"{ids[0]},50861,NA,0.0,40.0\n"
        f"{ids[0]},50889,>300,,nan\n"
        f"{ids[1]},51301,3.1 K/uL,4.0,11.0\n"
        f"{ids[1]},50867,99.0 IU/L,,\n"
        f"{ids[2]},59999,None,,\n"
        "19999999,51301,9.0 K/uL,4.0,11.0\n",
        "lab_test_mapping.csv": "itemid,label,fluid,category,count,corresponding_ids\n"
        '51755.0,White Blood Cells,Blood,Hematology,10.0,"[51301, 51755]"\n'
        "50956.0,Lipase,Blood,Chemistry,10.0,[50956]\n"
        "90201.0,Blood Culture,,,,[90201]\n"
        ',Complete Blood Count (CBC),,,,"[51301, 51755]"\n'
        "nan,LFTs,,,,[50861]\n",
        "radiology_reports.csv": "hadm_id,note_id,modality,region,exam_name,text\n"
        f'{ids[0]},N-1,Ultrasound,Abdomen,US ABD,"FINDINGS:\nSonogram {SECRET}.\n\n"\n'
        f'{ids[0]},N-2,CT,Abdomen,CT ABD SECRETNAME,"EXAMINATION:\nct\n\nTECHNIQUE:\nhelical\n\n'
        f'FINDINGS:\nLIVER: normal.\n\nAPPENDIX:\n____ , ""quoted""\n\nIMPRESSION:\nforbidden\n\n"\n'
        f"{ids[0]},N-3,Radiograph,Chest,CHEST,FINDINGS: chest words\n"
        f"{ids[0]},N-4,ERCP,Abdomen,ERCP,FINDINGS: treatment words\n"
        f"{ids[1]},N-5,CT,Abdomen,CT ABD,No headings at all {SECRET}\n",
        "microbiology.csv": "hadm_id,test_itemid,valuestr,spec_itemid\n"
        f"{ids[0]},90201,NO GROWTH {SECRET}.,70012\n"
        f'{ids[0]},90039,"{SECRET}, None",70079\n'
        "19999999,90201,NO GROWTH.,70012\n",
        "discharge_diagnosis.csv": "hadm_id,discharge_diagnosis\n"
        f'{ids[0]},"Acute appendicitis, {SECRET}\nanaemia"\n{ids[1]},acute cholecystitis\n'
        f"{ids[2]},gallstone pancreatitis {SECRET}\n{ids[3]},sigmoid diverticulitis\n",
        "icd_diagnosis.csv": f"hadm_id,icd_diagnosis\n{ids[0]},Acute appendicitis {SECRET}\n",
        "discharge_procedures.csv": f"hadm_id,discharge_procedure\n{ids[0]},Appendectomy {SECRET}\n",
        "icd_procedures.csv": f"hadm_id,icd_code,icd_title,icd_version\n{ids[0]},4701,Appendectomy {SECRET},9\n",
    }
    for name, text in tables.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    labels = {"appendicitis": [ids[0]], "cholecystitis": [ids[1]], "pancreatitis": [ids[2]], "diverticulitis": [ids[3]]}
    (folder / "pathology_ids.json").write_text(json.dumps(labels), encoding="utf-8")
    return folder


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return small_release(tmp_path)


@pytest.fixture(scope="session")
def synthetic_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "synthetic", 2400, n_hospitals=4, seed=0)


@pytest.fixture(scope="session")
def cohort(synthetic_folder: Path) -> Cohort:
    return load_cohort(synthetic_folder)
